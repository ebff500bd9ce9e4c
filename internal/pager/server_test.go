// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
)

// broken is a file of which a part cannot be had.
type broken struct {
	*bytes.Reader
	from, to int64
}

var errBroken = errors.New("checkpoint cp-1 is damaged")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off < b.to && off+int64(len(p)) > b.from {
		return 0, errBroken
	}
	return b.Reader.ReadAt(p, off)
}

// loading is a restored engine that loads its pages.
type loading struct {
	*testing.T
	s    *Server
	r    stateio.AsyncReader
	to   stateio.DestinationFile
	mem  []byte
	fail atomic.Int32 // times that the server was told of an error
}

func load(t *testing.T, pages File, rate int64) *loading {
	t.Helper()
	return loadBulk(t, pages, nil, rate)
}

func loadBulk(t *testing.T, pages, bulk File, rate int64) *loading {
	t.Helper()
	l := &loading{T: t}
	l.s = NewServer(Files{State: bytes.NewReader([]byte("state")), Meta: bytes.NewReader(nil), Pages: pages, Bulk: bulk}, rate, 1, func(err error) {
		if !errors.Is(err, errBroken) {
			t.Errorf("failed with %v", err)
		}
		l.fail.Add(1)
	})
	l.s.Begin()
	sock, err := l.s.Serve()
	c := dial(t, sock, err)
	if l.r, err = c.OpenRead(checkpointfiles.PagesFileName); err != nil {
		t.Fatal(err)
	}
	size := int(pages.Size()) + 64*pageSize
	f, mem := memory(t, size)
	if l.to, err = l.r.RegisterDestinationFD(int32(f.Fd()), uint64(size), nil); err != nil {
		t.Fatal(err)
	}
	l.mem = mem
	t.Cleanup(func() {
		if err := l.r.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// read asks for a piece of the file, to the same place in memory.
func (l *loading) read(id int, off, n uint64) {
	l.r.AddRead(id, int64(off), l.to, span(off, n), l.mem[off:off+n])
}

func TestReadsInAnyOrder(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	const chunk = 4 * pageSize
	pages := make([]byte, 64*chunk+100)
	random(rng, pages)
	l := load(t, bytes.NewReader(pages), 0)
	order := rng.Perm(len(pages)/chunk + 1)
	for len(order) > 0 {
		n := min(1+rng.IntN(l.r.MaxParallel()), len(order))
		for id, i := range order[:n] {
			off := uint64(i * chunk)
			if rng.IntN(2) == 0 {
				l.read(id, off, chunk)
				continue
			}
			frs := []memmap.FileRange{span(off, pageSize), span(off+pageSize, chunk-pageSize)}
			l.r.AddReadv(id, int64(off), chunk, l.to, frs, []unix.Iovec{
				{Base: &l.mem[off], Len: pageSize}, {Base: &l.mem[off+pageSize], Len: chunk - pageSize}})
		}
		for _, c := range await(t, l.r, n) {
			if c.Err != nil || c.N != chunk && c.N != 100 {
				t.Errorf("completion %+v", c)
			}
		}
		order = order[n:]
	}
	if !bytes.Equal(l.mem[:len(pages)], pages) {
		t.Error("other bytes were served")
	}
	if served, _ := l.s.Stats(); served != int64(len(pages)) {
		t.Errorf("%d bytes served, want %d", served, len(pages))
	}
	// Beyond the end there is nothing, which is no failure.
	past := uint64(len(pages)+pageSize) &^ (pageSize - 1)
	l.read(0, past, pageSize)
	if c := await(t, l.r, 1)[0]; !errors.Is(c.Err, io.EOF) || l.fail.Load() != 0 {
		t.Errorf("beyond the end: %+v", c)
	}
}

// A page that the guest waits for does not stand behind the paced bulk.
func TestDemandBeforeBulk(t *testing.T) {
	t.Parallel()
	pages := make([]byte, 4<<20)
	random(seeded(t), pages)
	l := load(t, bytes.NewReader(pages), 1) // as slow as patience lets it be
	last := l.r.MaxParallel() - 1
	for id := range last {
		l.read(id, uint64(id)*maxReadBytes, maxReadBytes)
	}
	begun := len(await(t, l.r, 1)) // the first of the bulk owes nothing
	demand := uint64(len(pages)) - 5*pageSize
	l.read(last, demand, pageSize)
	for left, seen := last+1-begun, false; left > 0; {
		cs := await(t, l.r, 1)
		for _, c := range cs {
			if c.Err != nil {
				t.Errorf("completion %+v", c)
			}
			seen = seen || c.ID == last
		}
		if left -= len(cs); !seen && left <= 1 {
			t.Error("the page that was waited for came behind the bulk")
		}
	}
	if !bytes.Equal(l.mem[demand:demand+pageSize], pages[demand:demand+pageSize]) {
		t.Error("other bytes were served on demand")
	}
	if _, faults := l.s.Stats(); faults != 1 {
		t.Errorf("%d reads waited for, want 1", faults)
	}
	if n := last * maxReadBytes; !bytes.Equal(l.mem[:n], pages[:n]) {
		t.Error("other bytes were served")
	}
}

// stuck is a source that does not answer for a while.
type stuck struct {
	*bytes.Reader
	until chan struct{}
}

func (s stuck) ReadAt(p []byte, off int64) (int, error) {
	<-s.until
	return s.Reader.ReadAt(p, off)
}

// A page that the guest waits for does not stand behind bulk reads that take
// long.
func TestDemandBesideSlowBulk(t *testing.T) {
	t.Parallel()
	pages := make([]byte, 4<<20)
	random(seeded(t), pages)
	bulk := stuck{bytes.NewReader(pages), make(chan struct{})}
	l := loadBulk(t, bytes.NewReader(pages), bulk, 0)
	last := l.r.MaxParallel() - 1
	for id := range last {
		l.read(id, uint64(id)*maxReadBytes, maxReadBytes)
	}
	demand := uint64(len(pages)) - 5*pageSize
	l.read(last, demand, pageSize)
	if c := await(t, l.r, 1)[0]; c.ID != last || c.Err != nil || !bytes.Equal(l.mem[demand:demand+pageSize], pages[demand:demand+pageSize]) {
		t.Errorf("the page that was waited for: %+v", c)
	}
	close(bulk.until)
	await(t, l.r, last)
	if n := last * maxReadBytes; !bytes.Equal(l.mem[:n], pages[:n]) {
		t.Error("other bytes were served")
	}
}

// Pages that were served on demand are not the bulk's any more.
func TestBulkGoesOnBehindDemand(t *testing.T) {
	t.Parallel()
	pages := make([]byte, 64*pageSize)
	l := load(t, bytes.NewReader(pages), 1<<30)
	for _, off := range []uint64{0, 2 * pageSize, pageSize, 3 * pageSize} { // only the second is not in order
		l.read(0, off, pageSize)
		await(t, l.r, 1)
	}
	if _, faults := l.s.Stats(); faults != 1 {
		t.Errorf("%d reads waited for, want 1", faults)
	}
}

// A page that cannot be had fails its read and is told once; what can be had
// is still served.
func TestBrokenPage(t *testing.T) {
	t.Parallel()
	pages := make([]byte, 64*pageSize)
	random(seeded(t), pages)
	l := load(t, broken{bytes.NewReader(pages), 8 * pageSize, 9 * pageSize}, 0)
	for range 3 {
		l.read(0, 8*pageSize, pageSize)
		if c := await(t, l.r, 1)[0]; !errors.Is(c.Err, unix.EIO) || c.N != 0 {
			t.Errorf("the broken page: %+v", c)
		}
	}
	l.read(1, 10*pageSize, pageSize)
	if c := await(t, l.r, 1)[0]; c.Err != nil || !bytes.Equal(l.mem[10*pageSize:11*pageSize], pages[10*pageSize:11*pageSize]) {
		t.Errorf("another page: %+v", c)
	}
	if n := l.fail.Load(); n != 1 {
		t.Errorf("the failure was told %d times", n)
	}
}

// Whatever an engine asks for, the server goes on.
func TestHostileReads(t *testing.T) {
	t.Parallel()
	pages := make([]byte, 16*pageSize)
	l := load(t, bytes.NewReader(pages), 1<<20)
	for i, off := range []int64{-1, -1 << 63, 1<<63 - 1, 1<<63 - pageSize, 5, 16 * pageSize, 0} {
		l.r.AddRead(0, off, l.to, span(0, pageSize), l.mem[:pageSize])
		c := await(t, l.r, 1)[0]
		if off < 0 && !errors.Is(c.Err, unix.EINVAL) || off > int64(len(pages)) && !errors.Is(c.Err, io.EOF) {
			t.Errorf("read %d at %d: %+v", i, off, c)
		}
	}
	if n := l.fail.Load(); n != 0 {
		t.Errorf("told of %d failures of the checkpoint", n)
	}
}

func TestServerRefuses(t *testing.T) {
	t.Parallel()
	s := NewServer(Files{State: bytes.NewReader(nil), Meta: bytes.NewReader(nil), Pages: bytes.NewReader(nil)}, 0, 1, func(error) {})
	sock, err := s.Serve()
	c := dial(t, sock, err)
	if _, err := c.OpenRead("manifest"); err == nil {
		t.Error("a foreign name was opened")
	}
	if _, err := c.OpenWrite(checkpointfiles.StateFileName); err == nil {
		t.Error("a checkpoint was opened for writing")
	}
}
