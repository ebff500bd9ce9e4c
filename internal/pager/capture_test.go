// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"

	"github.com/opencomputer/oc/internal/engine"
)

// newArena makes an arena whose files have the sizes, and gives their mappings.
func newArena(t *testing.T, state, meta, pages int) (_ *Arena, mem [3][]byte) {
	t.Helper()
	var files [3]*os.File
	for i, size := range []int{state, meta, pages} {
		files[i], mem[i] = memory(t, size)
	}
	a, err := NewArena(files[0], files[1], files[2])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a, mem
}

// testSource is a memory file of the engine's, registered for a file it writes.
type testSource struct {
	stateio.SourceFile
	mem []byte
}

func register(t *testing.T, w stateio.AsyncWriter, size int) testSource {
	t.Helper()
	f, mem := memory(t, size)
	return registerFile(t, w, f, mem)
}

func registerFile(t *testing.T, w stateio.AsyncWriter, f *os.File, mem []byte) testSource {
	t.Helper()
	sf, err := w.RegisterSourceFD(int32(f.Fd()), uint64(len(mem)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return testSource{sf, mem}
}

// finish ends a file as the engine does.
func finish(t *testing.T, w stateio.AsyncWriter) {
	t.Helper()
	if err := errors.Join(w.Finalize(), w.Close()); err != nil {
		t.Fatal(err)
	}
}

// What the engine writes from anywhere in its memory files is in the arena in
// the order of submission, with the identity of each page; also where a memory
// file was known before, and has grown since.
func TestCapture(t *testing.T) {
	for known := range 3 {
		t.Run(fmt.Sprintf("%d known", known), func(t *testing.T) {
			t.Parallel()
			testCapture(t, known)
		})
	}
}

func testCapture(t *testing.T, known int) {
	rng := seeded(t)
	const size = 4 << 20
	a, mem := newArena(t, 1<<20, 1<<20, 3*size)
	a.Prefault(size + 1)
	var files [2]*os.File
	var mems [2][]byte
	for k := range files {
		files[k], mems[k] = memory(t, size)
		if k >= known {
			continue
		}
		mems[k][5*pageSize] = 1 // something to find
		if err := files[k].Truncate(size / 2); err != nil {
			t.Fatal(err)
		}
		m := mapFile(t, files[k])
		if len(m.bytes()) != size/2 {
			t.Fatalf("%d bytes are mapped", len(m.bytes()))
		}
		a.Know(m)
		if err := files[k].Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
	_, state, w, _ := opened(t, a)
	finish(t, state)
	sources := []testSource{registerFile(t, w, files[0], mems[0]), registerFile(t, w, files[1], mems[1])}
	var want []byte
	var ids []engine.PageRange
	inflight, free := 0, make([]int, 0, w.MaxParallel())
	for id := range w.MaxParallel() {
		free = append(free, id)
	}
	for k := range sources {
		random(rng, sources[k].mem)
	}
	for range 200 {
		if len(free) == 0 {
			for _, cm := range await(t, w, 1+rng.IntN(inflight)) {
				if cm.Err != nil || cm.N == 0 {
					t.Fatalf("completion %+v", cm)
				}
				free = append(free, cm.ID)
				inflight--
			}
		}
		id := free[0]
		free = free[1:]
		inflight++
		k := rng.IntN(len(sources))
		want, ids = submit(w, id, k, sources[k], want, ids, rng.IntN(3)+1, func() (uint64, uint64) {
			n := pageSize * (1 + rng.Uint64N(4))
			return pageSize * rng.Uint64N((size-n)/pageSize), n
		})
	}
	await(t, w, inflight)
	finish(t, w)
	if _, _, pages := a.Sizes(); pages != int64(len(want)) || !bytes.Equal(mem[2][:pages], want) {
		t.Errorf("%d bytes captured, want %d equal ones", pages, len(want))
	}
	if !slices.Equal(a.Ranges(), ids) {
		t.Errorf("%d identities, want %d", len(a.Ranges()), len(ids))
	}
}

// submit writes n ranges and notes what the capture must hold of them.
func submit(w stateio.AsyncWriter, id, source int, s testSource, want []byte, ids []engine.PageRange, n int, next func() (start, length uint64)) ([]byte, []engine.PageRange) {
	var frs []memmap.FileRange
	var iovs []unix.Iovec
	total := uint64(0)
	for range n {
		start, length := next()
		frs = append(frs, span(start, length))
		iovs = append(iovs, unix.Iovec{Base: &s.mem[start], Len: length})
		want = append(want, s.mem[start:start+length]...)
		ids = appendRange(ids, engine.PageRange{Source: uint32(source), Offset: start, Length: length})
		total += length
	}
	if n == 1 {
		w.AddWrite(id, s.SourceFile, frs[0], s.mem[frs[0].Start:frs[0].End])
	} else {
		w.AddWritev(id, total, s.SourceFile, frs, iovs)
	}
	return want, ids
}

func TestAppendRange(t *testing.T) {
	t.Parallel()
	var got []engine.PageRange
	for _, r := range []engine.PageRange{
		{Source: 0, Offset: 0, Length: 4096}, {Source: 0, Offset: 4096, Length: 8192}, // neighbours
		{Source: 1, Offset: 12288, Length: 4096},                                      // another file
		{Source: 1, Offset: 4096, Length: 4096}, {Source: 1, Offset: 0, Length: 4096}, // backwards
	} {
		got = appendRange(got, r)
	}
	want := []engine.PageRange{
		{Source: 0, Offset: 0, Length: 12288}, {Source: 1, Offset: 12288, Length: 4096},
		{Source: 1, Offset: 4096, Length: 4096}, {Source: 1, Offset: 0, Length: 4096},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// The size of an arena's file is its bound: what does not fit is refused, and
// what came before is kept.
func TestArenaIsBounded(t *testing.T) {
	t.Parallel()
	a, mem := newArena(t, 2*pageSize, pageSize, pageSize)
	_, w, pages, s := opened(t, a)
	finish(t, pages)
	random(seeded(t), s.mem)
	for i, tt := range []struct {
		start, length uint64
		full          bool
	}{{0, pageSize, false}, {0, pageSize + 1, true}, {pageSize, pageSize, false}, {0, 1, true}} {
		w.AddWrite(i, s.SourceFile, span(tt.start, tt.length), s.mem[tt.start:tt.start+tt.length])
		cm := await(t, w, 1)[0]
		if full := errors.Is(cm.Err, unix.ENOSPC); full != tt.full || !full && (cm.Err != nil || cm.N != tt.length) {
			t.Errorf("write %d: %+v, want full: %v", i, cm, tt.full)
		}
	}
	finish(t, w)
	if state, _, _ := a.Sizes(); state != 2*pageSize || !bytes.Equal(mem[0], s.mem[:2*pageSize]) {
		t.Errorf("%d bytes are kept", state)
	}
	if len(a.Ranges()) > 0 {
		t.Error("the state has page identities")
	}
}

// Prefault is never wrong about how much there is.
func TestPrefault(t *testing.T) {
	t.Parallel()
	a, _ := newArena(t, pageSize, pageSize, 4*pageSize)
	for _, n := range []int64{0, 1, pageSize, 3 * pageSize, 4 * pageSize, 1 << 40} {
		a.Prefault(n)
	}
}

func TestNewArenaOfNothing(t *testing.T) {
	t.Parallel()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := NewArena(f, f, f); err == nil {
		t.Error("an empty file was mapped")
	}
}
