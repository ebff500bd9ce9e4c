// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"slices"
	"sort"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/store/format"
)

// The files of a capture, in the order in which a table has them.
const (
	FileState = "state" // the engine's object graph
	FileMeta  = "meta"  // the engine's page map
	FilePages = "pages" // page contents
)

var fileNames = []string{FileState, FileMeta, FilePages}

const pagesFile = 2 // index of FilePages

// identities finds pages of a pages file by where they came from.
type identities struct {
	spans []span // ascending by source and offset
}

type span struct {
	engine.PageRange
	page int64 // number of its first page in the pages file
}

func identify(ranges []engine.PageRange) *identities {
	x := &identities{spans: make([]span, 0, len(ranges))}
	page := int64(0)
	for _, r := range ranges {
		x.spans = append(x.spans, span{r, page})
		page += int64(r.Length) / format.PageSize
	}
	slices.SortFunc(x.spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Offset, b.Offset))
	})
	return x
}

// find gives the number of the page at an identity, and how many follow it in
// both; n is 0 if there is none.
func (x *identities) find(source uint32, offset uint64) (page, n int64) {
	i := sort.Search(len(x.spans), func(i int) bool {
		s := x.spans[i]
		return s.Source > source || s.Source == source && s.Offset > offset
	}) - 1
	if i < 0 || x.spans[i].Source != source || offset >= x.spans[i].Offset+x.spans[i].Length {
		return 0, 0
	}
	s := x.spans[i]
	k := int64(offset-s.Offset) / format.PageSize
	return s.page + k, int64(s.Length)/format.PageSize - k
}

// tableBuilder makes a table; segments are numbered in the order in which they
// are first used, so that what is one behind the other stays one run.
type tableBuilder struct {
	t        format.Table
	packs    map[string]uint32
	segments map[segmentKey]int32
	next     format.Run // where the last run would go on
}

type segmentKey struct {
	pack  uint32
	first uint32
}

func newTableBuilder() *tableBuilder {
	return &tableBuilder{packs: map[string]uint32{}, segments: map[segmentKey]int32{}}
}

// begin begins the next file.
func (b *tableBuilder) begin(size int64) {
	b.t.Files = append(b.t.Files, format.File{Size: size})
	b.next = format.Run{Page: -1}
}

// segment numbers a segment of the pack.
func (b *tableBuilder) segment(pack string, s format.Segment) int32 {
	p, ok := b.packs[pack]
	if !ok {
		p = uint32(len(b.t.Packs))
		b.packs[pack] = p
		b.t.Packs = append(b.t.Packs, pack)
	}
	k := segmentKey{p, s.First}
	i, ok := b.segments[k]
	if !ok {
		i = int32(len(b.t.Segments))
		b.segments[k] = i
		s.Pack = p
		b.t.Segments = append(b.t.Segments, s)
	}
	return i
}

// add adds n pages that begin at page and lie in the segment from the slot on,
// not beyond its end; or that are Zero.
func (b *tableBuilder) add(page, n int64, segment int32, slot int) {
	f := &b.t.Files[len(b.t.Files)-1]
	at := format.Run{Page: page, Segment: segment, Slot: uint16(slot)}
	if at != b.next {
		f.Runs = append(f.Runs, at)
	}
	at.Page += n
	if segment != format.Zero {
		if at.Slot += uint16(n); at.Slot == b.t.Segments[segment].Pages {
			at.Segment, at.Slot = segment+1, 0
		}
	}
	b.next = at
}

// addFrom adds the pages [from, to) of another table's file.
func (b *tableBuilder) addFrom(page int64, t *format.Table, file int, from, to int64) {
	f := &t.Files[file]
	for i := f.Find(from); from < to; i++ {
		r := f.Runs[i]
		end := min(f.End(i), to)
		for from < end {
			n := end - from
			segment, slot := int32(format.Zero), 0
			if r.Segment != format.Zero {
				k, at, rest := t.Locate(r, from)
				n = min(n, int64(rest))
				s := t.Segments[k]
				segment, slot = b.segment(t.Packs[s.Pack], s), at
			}
			b.add(page, n, segment, slot)
			page, from = page+n, from+n
		}
	}
}
