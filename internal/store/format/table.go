// SPDX-License-Identifier: Apache-2.0

package format

import (
	"encoding/binary"
	"sort"
)

// Table says where each page of a checkpoint is.
type Table struct {
	Packs    []string  // names that segments refer to
	Segments []Segment // that runs refer to
	Files    []File
	Ranges   []Range // identities of the pages of the last file, in order

	before []int64 // pages of the segments before each, and of all
}

// Locate gives the segment and slot of a page of a run that is not Zero, and
// how many pages are one behind the other from there to the segment's end.
// Segments must not be changed after the first call.
func (t *Table) Locate(r Run, page int64) (segment, slot, n int) {
	at := t.start(int(r.Segment)) + int64(r.Slot) + page - r.Page
	i := int(r.Segment)
	if at >= t.start(i+1) {
		i += sort.Search(len(t.before)-i, func(k int) bool { return t.before[i+k] > at }) - 1
	}
	return i, int(at - t.before[i]), int(t.before[i+1] - at)
}

// start is the number of pages of the segments before segment i.
func (t *Table) start(i int) int64 {
	if len(t.before) != len(t.Segments)+1 {
		t.before = make([]int64, len(t.Segments)+1)
		for k, s := range t.Segments {
			t.before[k+1] = t.before[k] + int64(s.Pages)
		}
	}
	return t.before[i]
}

// Each calls do for all pages of a file that are stored, in order, with n that are
// one behind the other in a segment from a slot on.
func (t *Table) Each(file int, do func(page int64, segment, slot, n int)) {
	f := &t.Files[file]
	for i, r := range f.Runs {
		for p := r.Page; r.Segment != Zero && p < f.End(i); {
			segment, slot, n := t.Locate(r, p)
			n = int(min(int64(n), f.End(i)-p))
			do(p, segment, slot, n)
			p += int64(n)
		}
	}
}

// Segment is where a segment is stored.
type Segment struct {
	Pack   uint32 // index in Table.Packs
	Offset int64  // in the pack, in bytes
	Size   uint32 // bytes as stored
	First  uint32 // number of its first page among the pages of the pack
	Pages  uint16
	Codec  Codec
	Sum    Hash // BLAKE3-256 of the bytes as stored
}

// File is a file of a capture, cut into pages; the last one is filled up with
// zeros.
type File struct {
	Size int64
	Runs []Run // ascending; together all pages of the file
}

// Pages is the number of pages of a file.
func (f *File) Pages() int64 { return (f.Size + PageSize - 1) / PageSize }

// Find gives the index of the run that a page of the file is in.
func (f *File) Find(page int64) int {
	return sort.Search(len(f.Runs), func(i int) bool { return f.Runs[i].Page > page }) - 1
}

// End is the first page behind run i.
func (f *File) End(i int) int64 {
	if i+1 < len(f.Runs) {
		return f.Runs[i+1].Page
	}
	return f.Pages()
}

// Zero in the place of a segment's number says that pages are all zero.
const Zero = -1

// Run is a run of pages that are one behind the other in segments, from a slot
// of one on to the first of the next, or that are all zero. It ends where the
// next one begins.
type Run struct {
	Page    int64 // number of the first in the file
	Segment int32 // index in Table.Segments, or Zero
	Slot    uint16
}

// Range says which pages those of the pages file are: so many bytes of a memory
// file of the engine's.
type Range struct {
	Source uint32
	Offset uint64
	Length uint64
}

const (
	tableMagic = "OCTABL2\n"
	maxName    = 200
	maxFile    = 1 << 50
	maxFiles   = 16
	maxPacks   = 1 << 20 // takes room in memory that a table, compressed, does not
)

// Encode gives the bytes of the table:
//
//	"OCTABL2\n"
//	packs     { name's length, name }
//	segments  { pack, offset, size, first, pages, codec, 32 bytes }
//	files     { size, runs { pages, segment + 1 or 0 for zeros: as difference to the last one, slot } }
//	ranges    { source, offset, length }
//
// where each list begins with its number of entries, and numbers are unsigned
// (differences: signed) variable-length integers as in protocol buffers.
func (t *Table) Encode() []byte {
	b := []byte(tableMagic)
	b = binary.AppendUvarint(b, uint64(len(t.Packs)))
	for _, p := range t.Packs {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	b = binary.AppendUvarint(b, uint64(len(t.Segments)))
	for _, s := range t.Segments {
		for _, v := range []uint64{uint64(s.Pack), uint64(s.Offset), uint64(s.Size), uint64(s.First), uint64(s.Pages), uint64(s.Codec)} {
			b = binary.AppendUvarint(b, v)
		}
		b = append(b, s.Sum[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(t.Files)))
	for i := range t.Files {
		b = t.Files[i].encode(b)
	}
	b = binary.AppendUvarint(b, uint64(len(t.Ranges)))
	for _, r := range t.Ranges {
		b = binary.AppendUvarint(b, uint64(r.Source))
		b = binary.AppendUvarint(b, r.Offset)
		b = binary.AppendUvarint(b, r.Length)
	}
	return b
}

func (f *File) encode(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(f.Size))
	b = binary.AppendUvarint(b, uint64(len(f.Runs)))
	last := int64(0)
	for i, r := range f.Runs {
		b = binary.AppendUvarint(b, uint64(f.End(i)-r.Page))
		ref := int64(r.Segment) + 1
		b = appendInt(b, ref-last)
		b = binary.AppendUvarint(b, uint64(r.Slot))
		last = ref
	}
	return b
}

// DecodeTable reads a table and checks that all that it refers to is in it.
func DecodeTable(b []byte) (*Table, error) {
	if len(b) < len(tableMagic) || string(b[:len(tableMagic)]) != tableMagic {
		return nil, malformed("not a table of pages")
	}
	c := &cursor{b: b[len(tableMagic):]}
	t := &Table{}
	packs := c.count(2)
	if packs > maxPacks {
		return nil, malformed("a table of %d packs", packs)
	}
	for range packs {
		name := string(c.bytes(int(c.size(maxName))))
		c.bad = c.bad || name == ""
		t.Packs = append(t.Packs, name)
	}
	n := c.count(38)
	t.Segments = make([]Segment, 0, n)
	for range n {
		s := Segment{Pack: uint32(c.size(1<<31 - 1)), Offset: c.size(maxFile), Size: uint32(c.size(maxStored)), First: uint32(c.size(1<<32 - 1)), Pages: uint16(c.size(MaxSegmentPages)), Codec: Codec(c.size(uint64(Zstd)))}
		copy(s.Sum[:], c.bytes(len(s.Sum)))
		if int(s.Pack) >= len(t.Packs) || s.Pages == 0 {
			c.bad = true
		}
		t.Segments = append(t.Segments, s)
	}
	t.start(0)
	files := c.count(2)
	if files > maxFiles {
		c.bad, files = true, 0
	}
	for range files {
		t.Files = append(t.Files, t.decodeFile(c))
	}
	n = c.count(3)
	t.Ranges = make([]Range, 0, n)
	var total uint64
	for i := range n {
		r := Range{Source: uint32(c.size(1<<32 - 1)), Offset: uint64(c.size(1<<63 - 1)), Length: uint64(c.size(maxFile))}
		total += r.Length
		if r.Length == 0 || total > maxFile || r.Offset%PageSize != 0 || r.Length%PageSize != 0 && i < n-1 {
			c.bad = true
		}
		t.Ranges = append(t.Ranges, r)
	}
	switch {
	case c.bad || len(c.b) > 0:
		return nil, malformed("a table of pages that is damaged")
	case len(t.Files) > 0 && total != uint64(t.Files[len(t.Files)-1].Size):
		return nil, malformed("a table whose identities do not cover its pages")
	}
	return t, nil
}

func (t *Table) decodeFile(c *cursor) File {
	f := File{Size: c.size(maxFile)}
	n := c.count(3)
	f.Runs = make([]Run, 0, n)
	page, last := int64(0), int64(0)
	for range n {
		count := c.size(maxFile)
		last += c.int()
		r := Run{Page: page, Segment: int32(last - 1), Slot: uint16(c.size(MaxSegmentPages))}
		if count == 0 || last < 0 || last > int64(len(t.Segments)) || !t.holds(r, count) {
			c.bad = true
			return f
		}
		if page += count; page > f.Pages() {
			c.bad = true // now: the sum of all may wrap
			return f
		}
		f.Runs = append(f.Runs, r)
	}
	if page != f.Pages() {
		c.bad = true
	}
	return f
}

// holds tells whether there are as many pages from a run's first on.
func (t *Table) holds(r Run, count int64) bool {
	if r.Segment == Zero {
		return r.Slot == 0
	}
	if r.Slot >= t.Segments[r.Segment].Pages {
		return false
	}
	return count <= t.start(len(t.Segments))-t.start(int(r.Segment))-int64(r.Slot)
}
