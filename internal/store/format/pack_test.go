// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/zeebo/blake3"
)

func randomIndex(rng *rand.Rand) (segments []PackedSegment, end int64) {
	end = int64(HeadSize)
	for range rng.IntN(6) {
		s := PackedSegment{Size: uint32(rng.IntN(5000)), Codec: Codec(rng.IntN(2)), Sum: Hash{byte(rng.IntN(256))}}
		for range 1 + rng.IntN(SegmentPages) {
			s.Hashes = append(s.Hashes, Hash{31: byte(rng.IntN(256))})
		}
		segments = append(segments, s)
		end += int64(s.Size)
	}
	return segments, end
}

// The index of a pack is found from its end, and is what was put there.
func TestPackRoundTrip(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	for range 50 {
		want, end := randomIndex(rng)
		b := append(BeginPack(nil), make([]byte, end-int64(HeadSize))...)
		b = EndPack(b, EncodeIndex(want))
		at, size, sum, err := Footer(b[len(b)-FooterSize:], int64(len(b)))
		if err != nil || at != end {
			t.Fatalf("index at %d, %v, want %d", at, err, end)
		}
		index := b[at:][:size]
		if blake3.Sum256(index) != sum {
			t.Fatal("the hash is of something else")
		}
		got, err := DecodeIndex(index, at)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestFooterRefuses(t *testing.T) {
	t.Parallel()
	pack := EndPack(BeginPack(nil), nil)
	size := int64(len(pack))
	tail := pack[len(pack)-FooterSize:]
	if _, _, _, err := Footer(tail, size); err != nil {
		t.Fatal(err)
	}
	long := bytes.Clone(tail)
	binary.LittleEndian.PutUint32(long, 1<<32-1)
	wrongEnd := bytes.Clone(tail)
	wrongEnd[len(tail)-2] = '3'
	for name, tt := range map[string]struct {
		tail []byte
		size int64
	}{
		"nothing":                   {nil, size},
		"cut off":                   {tail[:len(tail)-1], size},
		"more":                      {append([]byte{0}, tail...), size},
		"another end":               {wrongEnd, size},
		"an index before the pack":  {long, size},
		"no room for the beginning": {tail, size - 1},
		"no room for the end":       {tail, 0},
		"a size that is none":       {tail, -1 << 63},
	} {
		if at, n, _, err := Footer(tt.tail, tt.size); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %d bytes at %d, %v", name, n, at, err)
		}
	}
}

func TestIndexRefuses(t *testing.T) {
	t.Parallel()
	sound := []PackedSegment{{Size: 10, Codec: Zstd, Hashes: make([]Hash, 2)}, {Size: 5, Hashes: make([]Hash, 1)}}
	good := EncodeIndex(sound)
	end := int64(HeadSize) + 15
	if _, err := DecodeIndex(good, end); err != nil {
		t.Fatal(err)
	}
	set := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	cases := map[string][]byte{
		"no pages":                  set(4, 0),
		"more pages than there are": set(4, 200),
		"too many pages":            EncodeIndex([]PackedSegment{{Size: 15, Hashes: make([]Hash, MaxSegmentPages+1)}}),
		"a codec that is none":      set(6, 2),
		"a byte that must be zero":  set(7, 1),
		"another size":              set(0, 11),
		"a size too large":          EncodeIndex([]PackedSegment{{Size: maxStored + 1, Hashes: make([]Hash, 1)}}),
		"more behind it":            append(bytes.Clone(good), 0),
		"a segment missing":         good[:segmentHead+2*32],
	}
	for n := range good {
		if n != 0 {
			cases["cut off"] = good[:n]
		}
		for name, b := range cases {
			if got, err := DecodeIndex(b, end); !errors.Is(err, ErrFormat) {
				t.Errorf("%s (%d bytes): %v, %+v", name, len(b), err, got)
			}
		}
		cases = map[string][]byte{}
	}
	if _, err := DecodeIndex(EncodeIndex([]PackedSegment{{Size: maxStored + 1, Hashes: make([]Hash, 1)}}), int64(HeadSize)+maxStored+1); !errors.Is(err, ErrFormat) {
		t.Errorf("a size too large, in a pack that has it: %v", err)
	}
}

// FuzzDecodeIndex finds no bytes that break the decoder, and none accepted that
// are not the encoding of what they decode to, in a pack that ends there.
func FuzzDecodeIndex(f *testing.F) {
	f.Add([]byte{}, int64(HeadSize))
	for seed := range uint64(5) {
		s, end := randomIndex(rand.New(rand.NewPCG(seed, 0)))
		f.Add(EncodeIndex(s), end)
	}
	f.Fuzz(func(t *testing.T, in []byte, end int64) {
		segments, err := DecodeIndex(in, end)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if !bytes.Equal(EncodeIndex(segments), in) {
			t.Error("accepted what is not the encoding of what it decodes to")
		}
		at := int64(HeadSize)
		for _, s := range segments {
			at += int64(s.Size)
		}
		if at != end {
			t.Errorf("segments to %d, the index is at %d", at, end)
		}
	})
}

// FuzzFooter finds no footer that leads outside of its pack, or that is accepted
// and not the one that the index has.
func FuzzFooter(f *testing.F) {
	pack := EndPack(append(BeginPack(nil), "segments"...), []byte("index"))
	f.Add(pack[len(pack)-FooterSize:], int64(len(pack)))
	f.Add(pack[len(pack)-FooterSize:], int64(FooterSize))
	f.Add(pack[len(pack)-FooterSize:], int64(-1)<<63)
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		at, n, sum, err := Footer(tail, size)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if at < int64(HeadSize) || n < 0 || at+int64(n)+int64(FooterSize) != size {
			t.Errorf("an index of %d bytes at %d in a pack of %d", n, at, size)
		}
		again := binary.LittleEndian.AppendUint32(nil, uint32(n))
		again = append(append(again, sum[:]...), packEnd...)
		if !bytes.Equal(again, tail) {
			t.Error("accepted what is not the footer of what it says")
		}
	})
}
