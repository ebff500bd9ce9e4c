// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/pageset"
)

// base finds the pages of an earlier capture by their identity.
type base struct {
	seed    uint64
	hashes  []uint64
	sources map[uint32][]baseSpan // ascending and apart from each other
}

// baseSpan is a range of a memory file that the base has.
type baseSpan struct {
	start, end uint64
	first      uint64 // number of the first page's hash
}

// newBase indexes a base, which is as pageset.CheckBase wants it.
func newBase(b *engine.Base) *base {
	x := &base{seed: b.Seed, hashes: b.Hashes, sources: map[uint32][]baseSpan{}}
	type numbered struct {
		engine.PageRange
		first uint64
	}
	rs := make([]numbered, len(b.Ranges))
	page := uint64(0)
	for i, r := range b.Ranges {
		rs[i] = numbered{r, page}
		page += uint64(pageset.Pages(int64(r.Length)))
	}
	slices.SortFunc(rs, func(a, b numbered) int { return pageset.ByIdentity(a.PageRange, b.PageRange) })
	for _, r := range rs {
		x.sources[r.Source] = append(x.sources[r.Source], baseSpan{start: r.Offset, end: r.Offset + r.Length, first: r.first})
	}
	return x
}

// from gives the spans of a source that end behind an offset.
func (x *base) from(source uint32, off uint64) []baseSpan {
	spans := x.sources[source]
	i, _ := slices.BinarySearchFunc(spans, off, func(s baseSpan, off uint64) int {
		if s.end <= off {
			return -1
		}
		return 1
	})
	return spans[i:]
}

// changed calls f for each run of pages of mem, which is at an offset of a
// source, that may differ from the base: as [from, to) in mem. Runs do not adjoin
// unless they are longer than maxRun. off is a multiple of the page size.
func (x *base) changed(source uint32, off uint64, mem []byte, f func(from, to int)) {
	from := 0 // where the run begins that is open, if it is longer than nothing
	for _, s := range x.from(source, off) {
		if s.start >= off+uint64(len(mem)) {
			break
		}
		begin, end := max(s.start, off)-off, min(s.end-off, uint64(len(mem)))
		hashes := x.hashes[s.first+(off+begin-s.start)/pageSize:]
		for at := int(begin); at < int(end); at += pageSize {
			next := min(at+pageSize, len(mem))
			same := x.same(mem[at:next], hashes[0], s.end-off-uint64(at))
			hashes = hashes[1:]
			if same || at-from >= maxRun {
				if from < at {
					f(from, at)
				}
				from = at
			}
			if same {
				from = next
			}
		}
	}
	if from < len(mem) { // the rest differs, or is not in the base
		f(from, len(mem))
	}
}

// same tells whether a page is the base's page with the hash, behind which the
// base's range has so many bytes left.
func (x *base) same(page []byte, hash, left uint64) bool {
	return uint64(len(page)) == min(pageSize, left) && xxh3.HashSeed(page, x.seed) == hash
}

// maxRun is how much is hashed before it is copied, in bytes: it shall still be
// in the processor's cache then.
const maxRun = 128 << 10
