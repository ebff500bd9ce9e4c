// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/pageset"
)

// baseOf makes the base that a capture of these ranges leaves.
func baseOf(seed uint64, rs []engine.PageRange, pages []byte) *engine.Base {
	b := &engine.Base{Ranges: rs, Seed: seed}
	for p := range slices.Chunk(pages, pageSize) {
		b.Hashes = append(b.Hashes, xxh3.HashSeed(p, seed))
	}
	return b
}

// testFile is a memory file of the engine's.
type testFile struct {
	*os.File
	mem   []byte
	known bool // before the capture
}

// captured is what a capture left.
type captured struct {
	ranges []engine.PageRange
	copied []engine.PageRun
	size   int64
	arena  []byte
}

// whole puts a pages file together: what was copied, and the rest from the base.
func (c captured) whole(t *testing.T, base *engine.Base, pages []byte) []byte {
	t.Helper()
	type identity struct {
		source uint32
		off    uint64
	}
	old := map[identity][]byte{}
	if base != nil {
		at := uint64(0)
		for _, r := range base.Ranges {
			for off := uint64(0); off < r.Length; off += pageSize {
				old[identity{r.Source, r.Offset + off}] = pages[at+off : at+min(off+pageSize, r.Length)]
			}
			at += r.Length
		}
	}
	out := make([]byte, 0, c.size)
	runs := c.copied
	for _, r := range c.ranges {
		for off := uint64(0); off < r.Length; off += pageSize {
			n := int(min(pageSize, r.Length-off))
			page := int64(len(out) / pageSize)
			for len(runs) > 0 && runs[0].Page+runs[0].Count <= page {
				runs = runs[1:]
			}
			if c.copied == nil {
				out = append(out, c.arena[len(out):len(out)+n]...)
			} else if len(runs) > 0 && runs[0].Page <= page {
				at := runs[0].At + (page-runs[0].Page)*pageSize
				out = append(out, c.arena[at:at+int64(n)]...)
			} else {
				p := old[identity{r.Source, r.Offset + off}]
				if len(p) != n {
					t.Fatalf("page %d, at %d of source %d, was neither copied nor is it in the base", page, r.Offset+off, r.Source)
				}
				out = append(out, p...)
			}
		}
	}
	return out
}

// captureOn captures ranges of sources as the engine does, on a base unless it
// is nil.
func captureOn(t *testing.T, rng *rand.Rand, base *engine.Base, files []testFile, rs []engine.PageRange) captured {
	t.Helper()
	size := 0
	for _, r := range rs {
		size += int(r.Length)
	}
	a, mem := newArena(t, pageSize, pageSize, size+pageSize)
	if base != nil {
		if err := pageset.CheckBase(base); err != nil {
			t.Fatal(err)
		}
		a.Compare(base)
	}
	for _, f := range files {
		if f.known {
			a.Know(mapFile(t, f.File))
		}
	}
	a.Prefault(int64(rng.IntN(size + 1)))
	_, state, w, _ := opened(t, a)
	finish(t, state)
	var sources []testSource
	for _, f := range files {
		sources = append(sources, registerFile(t, w, f.File, f.mem))
	}
	writeRanges(t, rng, w, sources, rs)
	finish(t, w)
	_, _, n := a.Sizes()
	got := captured{ranges: a.Ranges(), copied: a.Copied(), size: n, arena: mem[2]}
	if n != int64(size) {
		t.Errorf("%d bytes captured, want %d", n, size)
	}
	// What it is on its way to the server.
	if _, copied, err := pageset.DecodeTable(pageset.EncodeTable(got.ranges, got.copied), n); err != nil || !slices.Equal(copied, got.copied) {
		t.Errorf("%d runs become %d: %v", len(got.copied), len(copied), err)
	}
	for i := 1; i < len(got.copied); i++ {
		if joined := appendRun([]engine.PageRun{got.copied[i-1]}, got.copied[i]); len(joined) == 1 {
			t.Errorf("%v and %v are one run", got.copied[i-1], got.copied[i])
		}
	}
	sum := int64(0)
	for _, r := range got.copied {
		sum += r.Count * pageSize
	}
	if want := a.Bytes(); got.copied != nil && sum != want || got.copied == nil && want != n {
		t.Errorf("%d bytes are said to be copied, %d are", want, sum)
	}
	return got
}

// writeRanges writes ranges in order, several to a request and cut anywhere
// between pages, with many requests in the air.
func writeRanges(t *testing.T, rng *rand.Rand, w stateio.AsyncWriter, sources []testSource, rs []engine.PageRange) {
	t.Helper()
	inflight, next := 0, 0
	var free []int
	for id := range w.MaxParallel() {
		free = append(free, id)
	}
	var frs []memmap.FileRange
	var iovs []unix.Iovec
	total, source := uint64(0), uint32(0)
	send := func() {
		if len(frs) == 0 {
			return
		}
		if len(free) == 0 {
			for _, cm := range await(t, w, 1) {
				if cm.Err != nil {
					t.Fatalf("completion %+v", cm)
				}
				free = append(free, cm.ID)
				inflight--
			}
		}
		w.AddWritev(free[0], total, sources[source].SourceFile, frs, iovs)
		free = free[1:]
		inflight++
		frs, iovs, total = nil, nil, 0
	}
	for ; next < len(rs); next++ {
		for r := rs[next]; r.Length > 0; {
			n := min(r.Length, pageSize*(1+rng.Uint64N(80)))
			if len(frs) > 0 && (r.Source != source || len(frs) > rng.IntN(5) || total+n > w.MaxWriteBytes()) {
				send()
			}
			source = r.Source
			frs = append(frs, span(r.Offset, n))
			iovs = append(iovs, unix.Iovec{Base: &sources[source].mem[r.Offset], Len: n})
			total += n
			r.Offset += n
			r.Length -= n
		}
	}
	send()
	for _, cm := range await(t, w, inflight) {
		if cm.Err != nil {
			t.Fatalf("completion %+v", cm)
		}
	}
}

// someRanges picks pages of the sources, ascending as the engine writes them;
// the last may end anywhere.
func someRanges(rng *rand.Rand, pages []int, odd bool) (rs []engine.PageRange) {
	for source, n := range pages {
		for at := rng.IntN(3); at < n; {
			length := min(1+rng.IntN(100), n-at)
			rs = append(rs, engine.PageRange{Source: uint32(source), Offset: uint64(at) * pageSize, Length: uint64(length) * pageSize})
			at += length + rng.IntN(3) // 0: a neighbour
		}
	}
	if odd {
		rs[len(rs)-1].Length -= uint64(rng.IntN(pageSize))
	}
	return rs
}

// contents are the bytes of ranges.
func contents(files []testFile, rs []engine.PageRange) (out []byte) {
	for _, r := range rs {
		out = append(out, files[r.Source].mem[r.Offset:r.Offset+r.Length]...)
	}
	return out
}

// A capture on a base has everything, together with the base, whatever happened
// to the memory since: changed pages, pages that came, went, or became zero, in
// files that grew or shrank.
func TestCaptureOnBase(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	for range 30 {
		pages := []int{1 + rng.IntN(600), 1 + rng.IntN(50), 1 + rng.IntN(300)}[:1+rng.IntN(3)]
		var files []testFile
		for i, n := range pages {
			f := newTestFile(t, n*pageSize, i == 0)
			random(rng, f.mem)
			files = append(files, f)
		}
		then := someRanges(rng, pages, rng.IntN(2) == 0)
		thenPages := contents(files, then)
		base := baseOf(rng.Uint64(), then, thenPages)
		for range rng.IntN(200) {
			f := files[rng.IntN(len(files))]
			page := f.mem[rng.IntN(len(f.mem)/pageSize)*pageSize:][:pageSize]
			if rng.IntN(4) == 0 {
				clear(page)
			} else {
				page[rng.IntN(pageSize)]++
			}
		}
		now := someRanges(rng, pages, rng.IntN(2) == 0)
		want := contents(files, now)
		for _, b := range []*engine.Base{base, nil, {Ranges: nil, Hashes: nil}} {
			got := captureOn(t, rng, b, files, now)
			if (b == nil) != (got.copied == nil) {
				t.Errorf("with base %v the runs are nil: %v", b != nil, got.copied == nil)
			}
			if !bytes.Equal(got.whole(t, b, thenPages), want) {
				t.Fatal("the capture and its base are not what was captured")
			}
		}
	}
}

// newTestFile makes a memory file that a capture finds known or not.
func newTestFile(t *testing.T, size int, known bool) testFile {
	t.Helper()
	f, mem := memory(t, size)
	return testFile{File: f, mem: mem, known: known}
}

// Only what differs is copied, side by side; neighbours are one run.
func TestOnlyDifferencesAreCopied(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	const n = 500
	f := newTestFile(t, n*pageSize, true)
	random(rng, f.mem)
	all := []engine.PageRange{{Source: 0, Offset: 0, Length: n * pageSize}}
	base := baseOf(5, all, f.mem)
	got := captureOn(t, rng, base, []testFile{f}, all)
	if got.copied == nil || len(got.copied) > 0 {
		t.Errorf("of the same pages %v were copied", got.copied)
	}
	for _, page := range []int{0, 7, 8, 300, n - 1} {
		f.mem[page*pageSize+100]++
	}
	sum := int64(0)
	for _, r := range captureOn(t, rng, base, []testFile{f}, all).copied {
		sum += r.Count
		for page := r.Page; page < r.Page+r.Count; page++ {
			if !slices.Contains([]int64{0, 7, 8, 300, n - 1}, page) {
				t.Errorf("page %d was copied", page)
			}
		}
	}
	if sum != 5 {
		t.Errorf("%d pages were copied, want 5", sum)
	}
	// The same pages of another source are other pages.
	other := *base
	other.Ranges = []engine.PageRange{{Source: 1, Offset: 0, Length: n * pageSize}}
	if got := captureOn(t, rng, &other, []testFile{f}, all); len(got.copied) == 0 {
		t.Error("pages of another source were taken for these")
	}
	other = *base
	other.Seed++
	if got := captureOn(t, rng, &other, []testFile{f}, all); len(got.copied) == 0 {
		t.Error("another seed makes no difference")
	}
}

// What is not pages is refused when pages are compared, and what comes before
// is kept.
func TestOnBaseOnlyPagesAreTaken(t *testing.T) {
	t.Parallel()
	a, _ := newArena(t, pageSize, pageSize, 4*pageSize)
	a.Compare(&engine.Base{})
	_, state, w, _ := opened(t, a)
	finish(t, state)
	s := register(t, w, 8*pageSize)
	for i, tt := range []struct {
		start, length uint64
		want          error
	}{
		{0, pageSize, nil}, {1, pageSize, unix.EINVAL}, {0, 4 * pageSize, unix.ENOSPC},
		{pageSize, 10, nil}, {2 * pageSize, pageSize, unix.EINVAL},
	} {
		w.AddWrite(i, s.SourceFile, span(tt.start, tt.length), s.mem[tt.start:tt.start+tt.length])
		if cm := await(t, w, 1)[0]; !errors.Is(cm.Err, tt.want) {
			t.Errorf("write %d: %+v, want %v", i, cm, tt.want)
		}
	}
	finish(t, w)
	if got := a.Copied(); !slices.Equal(got, []engine.PageRun{{Page: 0, Count: 2, At: 0}}) {
		t.Errorf("copied: %v", got)
	}
}

// BenchmarkChanged is the comparison of memory of which 1 % changed.
func BenchmarkChanged(b *testing.B) {
	mem := make([]byte, 256<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(mem) // never fails
	x := newBase(baseOf(1, []engine.PageRange{{Length: uint64(len(mem))}}, mem))
	for at := 0; at < len(mem); at += 100 * pageSize {
		mem[at]++
	}
	b.SetBytes(int64(len(mem)))
	for b.Loop() {
		n := 0
		x.changed(0, 0, mem, func(from, to int) { n += to - from })
		if n != (len(mem)/pageSize+99)/100*pageSize {
			b.Fatalf("%d bytes differ", n)
		}
	}
}
