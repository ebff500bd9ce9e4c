// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"slices"
	"testing"
)

func TestHashesRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range [][]uint64{{}, {0}, {1, math.MaxUint64, 3}} {
		seed, got, err := DecodeHashes(EncodeHashes(77, want), int64(len(want)))
		if err != nil || seed != 77 || !slices.Equal(got, want) {
			t.Errorf("got %d, %v, %v, want %v", seed, got, err, want)
		}
	}
}

func TestHashesRefuses(t *testing.T) {
	t.Parallel()
	good := EncodeHashes(1, []uint64{2, 3})
	for name, tt := range map[string]struct {
		b []byte
		n int64
	}{
		"nothing":              {nil, 0},
		"no seed":              {good[:len(hashesMagic)], 0},
		"another kind":         {append([]byte("OCHASH3\n"), good[8:]...), 2},
		"cut off":              {good[:len(good)-1], 2},
		"more behind it":       {append(bytes.Clone(good), 0), 2},
		"one too few":          {good, 3},
		"one too many":         {good, 1},
		"a negative number":    {good, -2},
		"a number that wraps":  {good, 1<<61 + 2},
		"one that wraps below": {good, -1<<61 + 2},
	} {
		if _, got, err := DecodeHashes(tt.b, tt.n); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// FuzzDecodeHashes finds no bytes that break the decoder, and none accepted that
// are not the encoding of what they decode to.
func FuzzDecodeHashes(f *testing.F) {
	f.Add(EncodeHashes(1, nil), int64(0))
	f.Add(EncodeHashes(1, []uint64{2, 3}), int64(2))
	f.Add(EncodeHashes(1, []uint64{2, 3}), int64(1<<61+2))
	f.Fuzz(func(t *testing.T, in []byte, n int64) {
		seed, hashes, err := DecodeHashes(in, n)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if int64(len(hashes)) != n || !bytes.Equal(EncodeHashes(seed, hashes), in) {
			t.Errorf("accepted what is not the encoding of %d hashes", n)
		}
	})
}

func TestHotRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range [][]int{nil, {0}, {200, 3, 128, 0}} {
		got, err := DecodeHot(EncodeHot(want), 201)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
}

func TestHotRefuses(t *testing.T) {
	t.Parallel()
	good := EncodeHot([]int{1, 300})
	for name, tt := range map[string]struct {
		b []byte
		n int
	}{
		"nothing":            {nil, 400},
		"another kind":       {append([]byte("OCHOTS3\n"), good[8:]...), 400},
		"cut off":            {good[:len(good)-1], 400},
		"no such segment":    {good, 300},
		"of no segments":     {EncodeHot([]int{0}), 0},
		"of fewer than none": {EncodeHot([]int{0}), -1},
		"more than all":      {EncodeHot([]int{0, 1, 0}), 2},
		"a number too long":  {append([]byte(hotMagic), 0x80, 0), 400},
		"one of 65 bits":     {append([]byte(hotMagic), bytes.Repeat([]byte{0xff}, 10)...), 400},
	} {
		if got, err := DecodeHot(tt.b, tt.n); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// FuzzDecodeHot finds no bytes that break the decoder, and none accepted that
// are not the encoding of what they decode to.
func FuzzDecodeHot(f *testing.F) {
	f.Add(EncodeHot(nil), 0)
	f.Add(EncodeHot([]int{5, 1, 300}), 301)
	f.Add(EncodeHot([]int{5}), -1)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		got, err := DecodeHot(in, n)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if len(got) > 0 && slices.Max(got) >= n || !bytes.Equal(EncodeHot(got), in) {
			t.Errorf("accepted %v of %d", got, n)
		}
	})
}

func TestSignedNumbers(t *testing.T) {
	t.Parallel()
	for _, want := range []int64{0, 1, -1, 63, -64, 64, math.MaxInt64, math.MinInt64} {
		c := cursor{b: appendInt(nil, want)}
		if got := c.int(); got != want || c.bad || len(c.b) > 0 {
			t.Errorf("got %d, want %d", got, want)
		}
	}
}

// A few bytes that promise much take no more than a few bytes. (Not parallel: it
// counts what the process allocates.)
func TestPromisesAllocateNothing(t *testing.T) {
	const promised = 1 << 40
	table := func(before ...uint64) []byte {
		b := []byte(tableMagic)
		for _, v := range append(before, promised) {
			b = binary.AppendUvarint(b, v)
		}
		return append(b, make([]byte, 100)...)
	}
	index := make([]byte, segmentHead+31)
	binary.LittleEndian.PutUint16(index[4:], MaxSegmentPages)
	for name, decode := range map[string]func() error{
		"packs":    func() error { _, err := DecodeTable(table()); return err },
		"segments": func() error { _, err := DecodeTable(table(0)); return err },
		"files":    func() error { _, err := DecodeTable(table(0, 0)); return err },
		"runs":     func() error { _, err := DecodeTable(table(0, 0, 1, promised)); return err },
		"ranges":   func() error { _, err := DecodeTable(table(0, 0, 0)); return err },
		"index":    func() error { _, err := DecodeIndex(index, 8); return err },
		"hashes":   func() error { _, _, err := DecodeHashes(EncodeHashes(1, nil), promised); return err },
		"hot":      func() error { _, err := DecodeHot(EncodeHot([]int{1 << 40}), promised); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := decode()
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
			t.Errorf("%s: %d bytes allocated", name, n)
		}
		if name != "hot" && !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
