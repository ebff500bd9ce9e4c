// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// randomTable is a table as a writer may make it.
func randomTable(rng *rand.Rand) *Table {
	t := &Table{Segments: []Segment{}, Ranges: []Range{}}
	for i := range rng.IntN(4) {
		t.Packs = append(t.Packs, fmt.Sprintf("packs/%d/%x", i, rng.Uint64()))
	}
	for range len(t.Packs) * rng.IntN(6) {
		t.Segments = append(t.Segments, Segment{
			Pack: uint32(rng.IntN(len(t.Packs))), Offset: rng.Int64N(maxFile), Size: uint32(rng.IntN(SegmentPages * PageSize)),
			First: rng.Uint32(), Pages: uint16(1 + rng.IntN(SegmentPages)), Codec: Codec(rng.IntN(2)), Sum: Hash{byte(rng.IntN(256)), 31: 7},
		})
	}
	for range 3 {
		t.Files = append(t.Files, randomFile(rng, t))
	}
	for left := uint64(t.Files[2].Size); left > 0; {
		n := min(left, (1+rng.Uint64N(1+left/PageSize))*PageSize)
		t.Ranges = append(t.Ranges, Range{Source: rng.Uint32(), Offset: rng.Uint64N(1<<40) * PageSize, Length: n})
		left -= n
	}
	return t
}

func randomFile(rng *rand.Rand, t *Table) File {
	f := File{Runs: []Run{}}
	page := int64(0)
	for range rng.IntN(10) {
		r := Run{Page: page, Segment: Zero}
		room := int64(1 << 20)
		if n := len(t.Segments); n > 0 && rng.IntN(3) > 0 {
			r.Segment = int32(rng.IntN(n))
			r.Slot = uint16(rng.IntN(int(t.Segments[r.Segment].Pages)))
			room = -int64(r.Slot)
			for _, s := range t.Segments[r.Segment:] {
				room += int64(s.Pages)
			}
		}
		page += 1 + rng.Int64N(room)
		f.Runs = append(f.Runs, r)
	}
	f.Size = page * PageSize
	if page > 0 {
		f.Size -= rng.Int64N(PageSize)
	}
	return f
}

// What is decoded is what was encoded, and each page is found where a walk from
// segment to segment comes to.
func TestTableRoundTrip(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	for range 30 {
		want := randomTable(rng)
		got, err := DecodeTable(want.Encode())
		if err != nil {
			t.Fatalf("%v: %+v", err, want)
		}
		found := *got
		found.before = nil
		if !reflect.DeepEqual(&found, want) {
			t.Fatalf("got %+v, want %+v", &found, want)
		}
		for i := range got.Files {
			walk(t, got, &got.Files[i])
		}
	}
}

// walk compares Find, End and Locate with going through a file page by page.
func walk(t *testing.T, table *Table, f *File) {
	t.Helper()
	for i, r := range f.Runs {
		segment, slot := int(r.Segment), int(r.Slot)
		for p := r.Page; p < f.End(i); p++ {
			if f.Find(p) != i {
				t.Fatalf("page %d is in run %d, found in %d", p, i, f.Find(p))
			}
			if r.Segment == Zero {
				p = max(p, f.End(i)-2) // all of them are alike
				continue
			}
			if slot == int(table.Segments[segment].Pages) {
				segment, slot = segment+1, 0
			}
			k, s, n := table.Locate(r, p)
			if k != segment || s != slot || n != int(table.Segments[segment].Pages)-slot {
				t.Fatalf("page %d is at %d, %d; found at %d, %d with %d", p, segment, slot, k, s, n)
			}
			slot++
		}
	}
}

// sound is a small table; tests spoil one thing of it.
func sound() *Table {
	return &Table{
		Packs: []string{"packs/a/b"},
		Segments: []Segment{
			{Offset: 8, Size: 100, Pages: 3, Codec: Zstd},
			{Offset: 108, Size: 2 * PageSize, First: 3, Pages: 2},
		},
		Files: []File{
			{Size: 10, Runs: []Run{{0, 0, 0}}},
			{Size: 0, Runs: []Run{}},
			{Size: 6 * PageSize, Runs: []Run{{0, 0, 1}, {4, Zero, 0}}},
		},
		Ranges: []Range{{0, 0, 2 * PageSize}, {1, 8 * PageSize, 4 * PageSize}},
	}
}

// Each field is refused when it says what cannot be.
func TestTableRefuses(t *testing.T) {
	t.Parallel()
	if _, err := DecodeTable(sound().Encode()); err != nil {
		t.Fatal(err)
	}
	pages := func(t *Table) *File { return &t.Files[2] }
	for name, spoil := range map[string]func(*Table){
		"a name of nothing":              func(t *Table) { t.Packs[0] = "" },
		"a name too long":                func(t *Table) { t.Packs[0] = strings.Repeat("a", maxName+1) },
		"a segment of no pack":           func(t *Table) { t.Segments[1].Pack = 1 },
		"segments without packs":         func(t *Table) { t.Packs = nil },
		"an offset too far":              func(t *Table) { t.Segments[1].Offset = maxFile + 1 },
		"a size too large":               func(t *Table) { t.Segments[1].Size = maxStored + 1 },
		"no pages":                       func(t *Table) { t.Segments[1].Pages = 0 },
		"too many pages":                 func(t *Table) { t.Segments[1].Pages = MaxSegmentPages + 1 },
		"a codec that is none":           func(t *Table) { t.Segments[1].Codec = Zstd + 1 },
		"too many files":                 func(t *Table) { t.Files = append(make([]File, maxFiles), t.Files...) },
		"a size of a file too large":     func(t *Table) { t.Files[0].Size = maxFile + 1 },
		"a run of no pages":              func(t *Table) { pages(t).Runs = append(pages(t).Runs[:1], Run{4, Zero, 0}, Run{4, Zero, 0}) },
		"a run of no segment":            func(t *Table) { pages(t).Runs[0].Segment = 2 },
		"a run of a negative segment":    func(t *Table) { pages(t).Runs[0].Segment = -2 },
		"a slot behind its segment":      func(t *Table) { pages(t).Runs[0].Slot = 3 },
		"a slot that wraps":              func(t *Table) { pages(t).Runs[0].Slot = 1<<16 - 1 },
		"a run longer than its segments": func(t *Table) { pages(t).Runs[1].Page = 5 },
		"zeros with a slot":              func(t *Table) { pages(t).Runs[1].Slot = 1 },
		"a range of nothing":             func(t *Table) { t.Ranges = append(t.Ranges, Range{}) },
		"a range too long":               func(t *Table) { t.Ranges[0].Length = maxFile + 1 },
		"ranges that wrap":               func(t *Table) { t.Ranges = append(t.Ranges, Range{0, 0, 1 << 63}, Range{0, 0, 1 << 63}) },
		"ranges for too little":          func(t *Table) { t.Ranges = t.Ranges[:1] },
		"ranges for too much":            func(t *Table) { t.Ranges = append(t.Ranges, Range{2, 0, PageSize}) },
		"ranges that divide a page": func(t *Table) {
			t.Ranges[0].Length, t.Ranges[1].Length = PageSize, 5*PageSize
			t.Ranges[0].Length++
			t.Ranges[1].Length--
		},
		"a range from within a page": func(t *Table) { t.Ranges[1].Offset++ },
		"a range that wraps":         func(t *Table) { t.Ranges[1].Offset = 1<<64 - PageSize },
	} {
		table := sound()
		spoil(table)
		refused(t, name, table.Encode())
	}
}

func refused(t *testing.T, name string, b []byte) {
	t.Helper()
	if _, err := DecodeTable(b); !errors.Is(err, ErrFormat) {
		t.Errorf("%s: %v", name, err)
	}
}

// Bytes that no encoder gives are refused.
func TestTableRefusesBytes(t *testing.T) {
	t.Parallel()
	good := sound().Encode()
	for n := range good {
		refused(t, fmt.Sprintf("cut off at %d", n), good[:n])
	}
	refused(t, "more behind it", append(bytes.Clone(good), 0))
	refused(t, "another kind", append([]byte("OCTABL3\n"), good[len(tableMagic):]...))
	many := append(binary.AppendUvarint([]byte(tableMagic), maxPacks+1), bytes.Repeat([]byte("\x01a"), maxPacks+1)...)
	refused(t, "too many packs", append(many, 0, 0, 0))
	numbers := func(n ...uint64) []byte {
		b := []byte(tableMagic)
		for _, v := range n {
			b = binary.AppendUvarint(b, v)
		}
		return b
	}
	refused(t, "a number in more bytes than it needs", append([]byte(tableMagic), 0x80, 0, 0, 0, 0))
	refused(t, "a number of more than 64 bits", append([]byte(tableMagic), bytes.Repeat([]byte{0xff}, 12)...))
	refused(t, "fewer runs than pages", numbers(0, 0, 1, PageSize, 0, 0))
	refused(t, "more pages than the file", numbers(0, 0, 1, PageSize, 1, 2, 0, 0, 1, 0, 0, PageSize))
	// 2^14 runs of 2^50 pages are 2^64 pages: none, if nobody looks.
	wrapping := numbers(0, 0, 1, PageSize, 1<<14+1)
	for range 1 << 14 {
		wrapping = append(binary.AppendUvarint(wrapping, 1<<50), 0, 0)
	}
	wrapping = append(wrapping, 1, 0, 0)
	wrapping = binary.AppendUvarint(append(wrapping, 1, 0, 0), PageSize)
	refused(t, "runs whose pages wrap", wrapping)
}

// FuzzDecodeTable finds no bytes that break the decoder, none that it accepts
// and an encoder would not have given, and none accepted in which a page is
// nowhere.
func FuzzDecodeTable(f *testing.F) {
	f.Add((&Table{}).Encode())
	f.Add(sound().Encode())
	for seed := range uint64(5) {
		f.Add(randomTable(rand.New(rand.NewPCG(seed, 0))).Encode())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		table, err := DecodeTable(in)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if !bytes.Equal(table.Encode(), in) {
			t.Error("accepted what is not the encoding of what it decodes to")
		}
		for i := range table.Files {
			tiles(t, table, &table.Files[i])
		}
	})
}

// tiles demands that the runs of a file are its pages, in order, and that the
// ends of each lie in segments that there are.
func tiles(t *testing.T, table *Table, f *File) {
	t.Helper()
	page := int64(0)
	for i, r := range f.Runs {
		if r.Page != page || f.End(i) <= page || f.Find(page) != i || f.Find(f.End(i)-1) != i {
			t.Fatalf("run %d is of pages %d to %d, after %d", i, r.Page, f.End(i), page)
		}
		for _, p := range []int64{r.Page, f.End(i) - 1} {
			if r.Segment == Zero {
				break
			}
			k, slot, n := table.Locate(r, p)
			if k < int(r.Segment) || k >= len(table.Segments) || slot < 0 || n < 1 || slot+n != int(table.Segments[k].Pages) {
				t.Fatalf("page %d is at %d, %d with %d", p, k, slot, n)
			}
		}
		page = f.End(i)
	}
	if page != f.Pages() {
		t.Fatalf("%d of %d pages", page, f.Pages())
	}
}
