// SPDX-License-Identifier: Apache-2.0

package pageset

import (
	"bytes"
	"encoding/hex"
	"math"
	"reflect"
	"slices"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
)

const page = engine.PageSize

func someBase() *engine.Base {
	return &engine.Base{
		Ranges: []engine.PageRange{{Source: 1, Offset: 8 * page, Length: 2 * page}, {Source: 0, Offset: 0, Length: page + 7}},
		Hashes: []uint64{1, 2, 3, math.MaxUint64}, Seed: 77,
	}
}

// The layouts are protocol between builds: these bytes stay.
func TestLayout(t *testing.T) {
	t.Parallel()
	r := []engine.PageRange{{Source: 1, Offset: page, Length: page}}
	for what, tt := range map[string]struct {
		got  []byte
		want string
	}{
		"base": {
			EncodeBase(&engine.Base{Ranges: r, Hashes: []uint64{3}, Seed: 2}),
			"4f4342415345310a" + "0200000000000000" + "0100000000000000" + "0100000000100000000000000010000000000000" + "0300000000000000",
		},
		"full":   {EncodeTable(r, nil), "4f43524e4753310a" + "0100000000100000000000000010000000000000"},
		"copied": {EncodeTable(r, []engine.PageRun{{Page: 0, Count: 1, At: 0}}), "4f43524e4753320a" + "0100000000000000" + "0100000000100000000000000010000000000000" + "000000000000000001000000000000000000000000000000"},
	} {
		if got := hex.EncodeToString(tt.got); got != tt.want {
			t.Errorf("%s: %s, want %s", what, got, tt.want)
		}
	}
}

func TestBaseComesBack(t *testing.T) {
	t.Parallel()
	for _, base := range []*engine.Base{someBase(), {Ranges: []engine.PageRange{}, Hashes: []uint64{}}} {
		got, err := DecodeBase(EncodeBase(base))
		if err != nil || !reflect.DeepEqual(got, base) {
			t.Errorf("%+v, %v; want %+v", got, err, base)
		}
	}
}

func TestBasesThatCannotBe(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*engine.Base){
		"a hash too few":        func(b *engine.Base) { b.Hashes = b.Hashes[1:] },
		"a hash too many":       func(b *engine.Base) { b.Hashes = append(b.Hashes, 1) },
		"an empty range":        func(b *engine.Base) { b.Ranges[1].Length = 0 },
		"a huge range":          func(b *engine.Base) { b.Ranges[1].Length = math.MaxUint64 },
		"a far range":           func(b *engine.Base) { b.Ranges[0].Offset = math.MaxUint64 &^ (page - 1) },
		"an unaligned start":    func(b *engine.Base) { b.Ranges[0].Offset++ },
		"an unaligned end":      func(b *engine.Base) { b.Ranges[0].Length++; b.Hashes = append(b.Hashes, 1) },
		"a page twice":          func(b *engine.Base) { b.Ranges[1] = engine.PageRange{Source: 1, Offset: 9 * page, Length: 2 * page} },
		"a page twice, at once": func(b *engine.Base) { b.Ranges[1] = engine.PageRange{Source: 1, Offset: 8 * page, Length: 2 * page} },
	} {
		base := someBase()
		change(base)
		if got, err := DecodeBase(EncodeBase(base)); err == nil {
			t.Errorf("%s: %+v", what, got)
		}
	}
	whole := EncodeBase(someBase())
	for n := range whole {
		if got, err := DecodeBase(whole[:n]); err == nil {
			t.Errorf("cut off after %d of %d bytes: %+v", n, len(whole), got)
		}
	}
}

func TestTableComesBack(t *testing.T) {
	t.Parallel()
	rs := someBase().Ranges // four pages, the last of 7 bytes
	for _, runs := range [][]engine.PageRun{
		nil, {}, {{Page: 3, Count: 1, At: 0}},
		{{Page: 0, Count: 1, At: page}, {Page: 1, Count: 1, At: 0}, {Page: 2, Count: 2, At: 2 * page}},
	} {
		gotR, gotC, err := DecodeTable(EncodeTable(rs, runs), 3*page+7)
		if err != nil || !slices.Equal(gotR, rs) || !reflect.DeepEqual(gotC, runs) {
			t.Errorf("%v, %v, %v; want %v", gotR, gotC, err, runs)
		}
	}
}

func TestTablesThatCannotBe(t *testing.T) {
	t.Parallel()
	const size = 3*page + 7
	rs := someBase().Ranges
	for what, runs := range map[string][]engine.PageRun{
		"behind the end":     {{Page: 4, Count: 1}},
		"over the end":       {{Page: 3, Count: 2}},
		"far over the end":   {{Page: 3, Count: math.MaxInt64}},
		"before the start":   {{Page: -1, Count: 1}},
		"empty":              {{Page: 1, Count: 0}},
		"less than empty":    {{Page: 1, Count: -1}},
		"twice":              {{Page: 1, Count: 2}, {Page: 2, Count: 1, At: 2 * page}},
		"descending":         {{Page: 2, Count: 1}, {Page: 1, Count: 1, At: page}},
		"a gap":              {{Page: 0, Count: 1}, {Page: 1, Count: 1, At: 2 * page}},
		"one upon the other": {{Page: 0, Count: 2}, {Page: 2, Count: 1, At: page}},
		"not from 0 on":      {{Page: 0, Count: 1, At: page}},
		"below 0":            {{Page: 0, Count: 1, At: -page}},
	} {
		if _, got, err := DecodeTable(EncodeTable(rs, runs), size); err == nil {
			t.Errorf("%s: %v", what, got)
		}
	}
	for _, runs := range [][]engine.PageRun{nil, {{Page: 0, Count: 1}}} {
		whole := EncodeTable(rs, runs)
		for n := range whole {
			if _, got, err := DecodeTable(whole[:n], size); err == nil && n != len(whole)-runBytes {
				t.Errorf("cut off after %d of %d bytes: %v", n, len(whole), got)
			}
		}
		for _, wrong := range []int64{0, size - 1, size + 1, -1, math.MaxInt64} {
			if _, _, err := DecodeTable(whole, wrong); err == nil {
				t.Errorf("taken for a file of %d bytes", wrong)
			}
		}
	}
}

func FuzzDecodeBase(f *testing.F) {
	f.Add(EncodeBase(someBase()))
	f.Add(EncodeBase(&engine.Base{}))
	f.Add([]byte(baseMagic))
	f.Fuzz(func(t *testing.T, in []byte) {
		base, err := DecodeBase(in)
		if err != nil {
			return
		}
		if !bytes.Equal(EncodeBase(base), in) {
			t.Errorf("%+v is laid out in another way", base)
		}
	})
}

func FuzzDecodeTable(f *testing.F) {
	rs := someBase().Ranges
	f.Add(EncodeTable(rs, nil), int64(3*page+7))
	f.Add(EncodeTable(rs, []engine.PageRun{{Page: 0, Count: 1, At: page}, {Page: 1, Count: 1, At: 0}}), int64(3*page+7))
	f.Add([]byte(copiedMagic), int64(0))
	f.Fuzz(func(t *testing.T, in []byte, size int64) {
		rs, copied, err := DecodeTable(in, size)
		if err != nil {
			return
		}
		if !bytes.Equal(EncodeTable(rs, copied), in) {
			t.Errorf("%v, %v is laid out in another way", rs, copied)
		}
		n := int64(0)
		for _, r := range copied {
			n += r.Count
		}
		if n > Pages(size) {
			t.Errorf("%d pages of %d were copied", n, Pages(size))
		}
	})
}
