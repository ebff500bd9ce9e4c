// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/pageset"
)

// Arena is where a capture is copied to: three files of memory (or, for a
// sandbox larger than the memory budget, of disk), handed to the process that
// makes the capture durable.
//
// Of pages that are compared with a base only those are copied that differ, side
// by side in the order in which they are found.
//
// The engine decides when it ends a write; so the mappings live until the
// arena is closed and the last writer is.
type Arena struct {
	files map[string]*region
	known []knownFile // not changed once the engine writes
	base  *base       // likewise; nil: all pages are copied

	mu       sync.Mutex
	writers  int      // open ones
	closed   bool     // by its owner
	gathered [][]byte // mappings of the engine's buffers
}

type region struct {
	mem    []byte  // mapping of the whole file, whose size is the bound
	gather *buffer // where the engine gathers what it writes; nil: it does not

	// Set when the file is finalized; guarded by Arena.mu.
	n      int64 // bytes written
	used   int64 // bytes kept of them
	frs    []engine.PageRange
	copied []engine.PageRun
}

// NewArena maps the three files; their sizes bound what a capture may take.
func NewArena(state, meta, pages *os.File) (_ *Arena, err error) {
	a := &Arena{files: map[string]*region{}}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	for name, f := range map[string]*os.File{
		checkpointfiles.StateFileName:         state,
		checkpointfiles.PagesMetadataFileName: meta,
		checkpointfiles.PagesFileName:         pages,
	} {
		st, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("pager: arena: %w", err)
		}
		mem, err := mapHuge(f, int(st.Size()))
		if err != nil {
			return nil, fmt.Errorf("pager: mapping the arena (%d bytes): %w", st.Size(), err)
		}
		a.files[name] = &region{mem: mem}
	}
	return a, nil
}

// Compare has the capture copy only pages that differ from a base, which is as
// pageset.CheckBase wants it. Call it before the engine writes.
func (a *Arena) Compare(b *engine.Base) { a.base = newBase(b) }

// Prefault brings the first n bytes of the page region into memory, so that
// the copy inside the pause causes no page faults. It does what it can.
func (a *Arena) Prefault(n int64) {
	mem := a.files[checkpointfiles.PagesFileName].mem
	makePresent(mem[:min((n+pageSize-1)&^(pageSize-1), int64(len(mem)))])
}

// Serve starts serving the arena's files for writing, once, and gives the
// engine's end of the connection. It ends when all copies of that are closed. If
// this process dies at any moment, the engine loses the capture and nothing else.
func (a *Arena) Serve() (*os.File, error) {
	c, theirs, err := a.offer()
	if err != nil {
		return nil, err
	}
	go c.serve()
	return theirs, nil
}

// Sizes are the bytes that the engine wrote to each file, valid after the
// capture.
func (a *Arena) Sizes() (state, meta, pages int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.files[checkpointfiles.StateFileName].n,
		a.files[checkpointfiles.PagesMetadataFileName].n,
		a.files[checkpointfiles.PagesFileName].n
}

// Ranges are the identities of the pages written, valid after the capture.
func (a *Arena) Ranges() []engine.PageRange {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.files[checkpointfiles.PagesFileName].frs
}

// Copied are the runs of pages that were copied, in order, valid after the
// capture; nil where nothing was compared and all were.
func (a *Arena) Copied() []engine.PageRun {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.files[checkpointfiles.PagesFileName].copied
}

// Bytes is how much of the page region the copied pages take, valid after the
// capture.
func (a *Arena) Bytes() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.files[checkpointfiles.PagesFileName].used
}

// Close unmaps the arena, at once or when the last writer is closed; the files
// stay the caller's.
func (a *Arena) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.unmapUnused()
}

// unmapUnused unmaps what nobody uses any more. a.mu is held.
func (a *Arena) unmapUnused() {
	if !a.closed || a.writers > 0 {
		return
	}
	for _, r := range a.files {
		unmapHuge(r.mem)
		r.mem = nil
	}
	for _, mem := range a.gathered {
		_ = unix.Munmap(mem)
	}
	a.gathered = nil
}

// gatherFrom maps a buffer of the engine's until the arena is unmapped.
func (a *Arena) gatherFrom(f *os.File, size int) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, errors.New("pager: the arena is closed")
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("pager: mapping a buffer of the engine's (%d bytes): %w", size, err)
	}
	a.gathered = append(a.gathered, mem)
	return mem, nil
}

// borrow gives the region of a file to a writer.
func (a *Arena) borrow(path string) (*region, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.files[path]
	if r == nil || a.closed {
		return nil, fmt.Errorf("unexpected file %q", path)
	}
	a.writers++
	return r, nil
}

func (a *Arena) giveBack() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writers--
	a.unmapUnused()
}

// captureServer implements stateipc.AsyncFileServerImpl for writing.
type captureServer struct{ a *Arena }

func (captureServer) Destroy() {}

func (captureServer) OpenRead(string) (stateio.AsyncReader, error) {
	return nil, errors.New("a capture is not for reading")
}

func (s captureServer) OpenWrite(path string) (stateio.AsyncWriter, error) {
	r, err := s.a.borrow(path)
	if err != nil {
		return nil, err
	}
	w := &captureWriter{a: s.a, r: r, done: make(chan stateio.Completion, maxParallel), jobs: make(chan copyJob, maxParallel)}
	workers := 1
	if path == checkpointfiles.PagesFileName {
		w.identify, w.base = true, s.a.base
		workers = runtime.NumCPU()
	}
	for range workers {
		w.wg.Go(w.work)
	}
	return w, nil
}

// Limits of the page protocol for captures: large enough that the engine never
// waits for us, small enough that two workers share the copying evenly.
const (
	maxParallel     = 64
	maxCaptureBytes = 1 << 20
	maxRanges       = 256
)

type copyJob struct {
	id     int
	off    int64 // in the engine's file
	size   uint64
	source uint32
	frs    []memmap.FileRange // where from is in the source
	from   [][]byte
}

// captureWriter copies what the engine writes into a region: in the order in
// which it is submitted, or, with a base, the pages that differ from it.
type captureWriter struct {
	stateio.NoRegisterClientFD
	a        *Arena
	r        *region
	identify bool  // record page identities
	base     *base // nil: copy all
	sources  uint32
	off      int64
	frs      []engine.PageRange
	jobs     chan copyJob
	done     chan stateio.Completion
	wg       sync.WaitGroup

	mu   sync.Mutex
	used int64            // bytes of the region, with a base
	runs []engine.PageRun // what is copied there, in order of At
}

// source is one of the engine's memory files.
type source struct {
	index uint32
	mem   []byte // its mapping, where it was known before
}

// RegisterSourceFD numbers the engine's memory files in their order.
func (w *captureWriter) RegisterSourceFD(fd int32, _ uint64, _ []stateio.ClientFileRangeSetting) (stateio.SourceFile, error) {
	w.sources++
	return source{index: w.sources - 1, mem: w.a.mappingOf(int(fd))}, nil
}

func (w *captureWriter) work() {
	for j := range w.jobs {
		if w.base != nil {
			w.copyChanged(j)
		} else {
			dst := w.r.mem[j.off:]
			for _, m := range j.from {
				dst = dst[copy(dst, m):]
			}
		}
		w.done <- stateio.Completion{ID: j.id, N: j.size}
	}
}

func (w *captureWriter) add(id int, size uint64, sf stateio.SourceFile, frs []memmap.FileRange, from [][]byte) {
	off := w.off
	if uint64(len(w.r.mem))-uint64(off) < size {
		w.done <- stateio.Completion{ID: id, Err: unix.ENOSPC}
		return
	}
	if w.base != nil && !wholePages(off, frs) {
		w.done <- stateio.Completion{ID: id, Err: unix.EINVAL}
		return
	}
	src, _ := sf.(source)
	if w.r.gather != nil {
		<-w.r.gather.came // soon, if it was not there before
		src.mem = w.r.gather.mem
	}
	for i, fr := range frs {
		if fr.End <= uint64(len(src.mem)) {
			from[i] = src.mem[fr.Start:fr.End]
		} else if w.r.gather != nil { // what is registered in its place holds nothing
			w.done <- stateio.Completion{ID: id, Err: unix.EINVAL}
			return
		}
		if w.identify {
			w.frs = appendRange(w.frs, engine.PageRange{Source: src.index, Offset: fr.Start, Length: fr.Length()})
		}
	}
	w.off += int64(size)
	w.jobs <- copyJob{id: id, off: off, size: size, source: src.index, frs: frs, from: from}
}

// wholePages tells whether ranges that are written at an offset are pages of the
// file; the last one may end anywhere.
func wholePages(off int64, frs []memmap.FileRange) bool {
	at := uint64(off)
	for _, fr := range frs {
		if at%pageSize != 0 || fr.Start%pageSize != 0 {
			return false
		}
		at += fr.Length()
	}
	return true
}

// copyChanged copies the pages that differ from the base.
func (w *captureWriter) copyChanged(j copyJob) {
	off := j.off
	for i, m := range j.from {
		w.base.changed(j.source, j.frs[i].Start, m, func(from, to int) {
			copy(w.r.mem[w.place(off+int64(from), to-from):], m[from:to])
		})
		off += int64(len(m))
	}
}

// place finds room in the region for n bytes of the pages at an offset of the
// file. There is enough: the whole file would fit.
func (w *captureWriter) place(off int64, n int) (at int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at = w.used
	r := engine.PageRun{Page: off / pageSize, Count: pageset.Pages(int64(n)), At: at}
	w.used += r.Count * pageSize
	w.runs = appendRun(w.runs, r)
	return at
}

// appendRun joins neighbours.
func appendRun(rs []engine.PageRun, r engine.PageRun) []engine.PageRun {
	if n := len(rs); n > 0 {
		if l := &rs[n-1]; l.Page+l.Count == r.Page && l.At+l.Count*pageSize == r.At {
			l.Count += r.Count
			return rs
		}
	}
	return append(rs, r)
}

// copied gives how much is copied, and the runs in the order of their pages;
// they are not nil.
func (w *captureWriter) copied() (used int64, runs []engine.PageRun) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortFunc(w.runs, func(a, b engine.PageRun) int { return cmp.Compare(a.Page, b.Page) })
	runs = make([]engine.PageRun, 0, len(w.runs))
	for _, r := range w.runs {
		runs = appendRun(runs, r)
	}
	return w.used, runs
}

// appendRange joins neighbours.
func appendRange(rs []engine.PageRange, r engine.PageRange) []engine.PageRange {
	if n := len(rs); n > 0 {
		if l := &rs[n-1]; l.Source == r.Source && l.Offset+l.Length == r.Offset {
			l.Length += r.Length
			return rs
		}
	}
	return append(rs, r)
}

func (w *captureWriter) AddWrite(id int, sf stateio.SourceFile, fr memmap.FileRange, m []byte) {
	w.add(id, uint64(len(m)), sf, []memmap.FileRange{fr}, [][]byte{m})
}

func (w *captureWriter) AddWritev(id int, total uint64, sf stateio.SourceFile, frs []memmap.FileRange, iovs []unix.Iovec) {
	w.add(id, total, sf, frs, mappings(stateio.LocalClientMappings(iovs)))
}

func (w *captureWriter) Wait(cs []stateio.Completion, n int) ([]stateio.Completion, error) {
	return stateio.CompletionChanWait(w.done, cs, n)
}

func (w *captureWriter) Reserve(uint64) {}

func (w *captureWriter) Finalize() error {
	used, copied := w.off, []engine.PageRun(nil)
	if w.base != nil {
		used, copied = w.copied()
	}
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	w.r.n, w.r.frs, w.r.used, w.r.copied = w.off, w.frs, used, copied
	return nil
}

func (w *captureWriter) Close() error {
	close(w.jobs)
	w.wg.Wait()
	w.a.giveBack()
	return nil
}

func (w *captureWriter) MaxWriteBytes() uint64 { return maxCaptureBytes }
func (w *captureWriter) MaxRanges() int        { return maxRanges }
func (w *captureWriter) MaxParallel() int      { return maxParallel }

// mappings are the byte slices that a request's ranges are mapped at.
func mappings(l stateio.LocalClientRanges) [][]byte {
	if l.Mapping != nil {
		return [][]byte{l.Mapping}
	}
	out := make([][]byte, len(l.Iovecs))
	for i, v := range l.Iovecs {
		out[i] = stateio.SliceFromIovec(v)
	}
	return out
}
