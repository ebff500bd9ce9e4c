// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
)

// File is a verified file of a checkpoint.
type File interface {
	io.ReaderAt
	Size() int64
}

// Files are the three files of a checkpoint.
type Files struct {
	State, Meta, Pages File
	Bulk               File // the pages, for reads that nobody waits for; nil: Pages
}

// Server serves one checkpoint to one restored generation.
type Server struct {
	files  map[string]File
	later  File         // the pages, for the bulk
	failed func(error)  // told once, when a page cannot be had
	rate   atomic.Int64 // bytes/s of the bulk of the pages; 0 = unlimited
	bulk   *pacer
	read   atomic.Int64
	faults atomic.Int64
	once   sync.Once
}

// NewServer makes a server, one of so many that load together. rate bounds the
// bulk loading in bytes/s (0: not at all); failed is called once, with the first
// error of a read.
func NewServer(f Files, rate int64, together int, failed func(error)) *Server {
	s := &Server{failed: failed, files: map[string]File{
		checkpointfiles.StateFileName:         f.State,
		checkpointfiles.PagesMetadataFileName: f.Meta,
		checkpointfiles.PagesFileName:         f.Pages,
	}}
	if s.later = f.Bulk; s.later == nil {
		s.later = f.Pages
	}
	s.rate.Store(rate)
	s.bulk = newPacer(&s.rate, together)
	return s
}

// Serve starts serving and gives the engine's end of the connection.
func (s *Server) Serve() (*os.File, error) { return serve(readServer{s}) }

// Begin has the bulk come, of which there is little before: the guest has its
// first work behind it, or somebody waits for all of its memory.
func (s *Server) Begin() { s.bulk.begin() }

// SetRate changes the bound of the bulk loading, in bytes/s; 0 lifts it.
func (s *Server) SetRate(rate int64) { s.rate.Store(rate) }

// Stats tells the bytes of pages served and how many reads waited for.
func (s *Server) Stats() (bytes, faults int64) { return s.read.Load(), s.faults.Load() }

func (s *Server) fail(err error) {
	s.once.Do(func() { s.failed(err) })
}

// readServer implements stateipc.AsyncFileServerImpl for reading.
type readServer struct{ s *Server }

func (readServer) Destroy() {}

func (readServer) OpenWrite(string) (stateio.AsyncWriter, error) {
	return nil, errors.New("a checkpoint is not for writing")
}

func (r readServer) OpenRead(path string) (stateio.AsyncReader, error) {
	f := r.s.files[path]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	rd := &reader{
		s: r.s, f: f, closed: func() {},
		done: make(chan stateio.Completion, maxReads), jobs: make(chan readJob, maxReads), later: make(chan readJob, maxReads),
	}
	switch path {
	case checkpointfiles.StateFileName:
		rd.closed = r.s.bulk.run // the engine closes it when it lets its guest run
	case checkpointfiles.PagesFileName:
		rd.seen = make([]bool, f.Size()/pageSize+1)
		rd.closed = r.s.bulk.close
		for range bulkWorkers {
			rd.wg.Go(func() { rd.work(rd.later, r.s.later) })
		}
	}
	for range readWorkers {
		rd.wg.Go(func() { rd.work(rd.jobs, f) })
	}
	return rd, nil
}

// Limits of the page protocol for loading. A read of pages is a block of the
// store, which is verified whole.
const (
	maxReads     = 8
	maxReadBytes = 64 << 10
	// maxStateBytes is for the files that the engine reads through, before
	// anything runs.
	maxStateBytes = 1 << 20
	// Reads that are waited for have workers of their own, so that they do not
	// stand behind the bulk where a read takes long: the source may be far away.
	// The bulk has few, because it takes the link from the others.
	readWorkers = 4
	bulkWorkers = 2
)

type readJob struct {
	id      int
	off     int64
	size    uint64
	to      *os.File
	at      []memmap.FileRange
	awaited bool // by the guest
}

// reader serves one file. The engine reads the pages file in order, except for
// pages that the guest waits for. What it wants is written into its memory
// files, not into a mapping of them: that would fault in each page first, with
// zeros, and on a disk's file a lot of pages around it.
type reader struct {
	s      *Server
	f      File
	closed func() // called before it is closed
	jobs   chan readJob
	done   chan stateio.Completion
	wg     sync.WaitGroup

	seen  []bool       // pages asked for; nil: not the pages file
	next  int64        // where the bulk reads go on
	later chan readJob // those of the bulk

	mu    sync.Mutex
	files []*os.File // destinations
}

// NeedRegisterDestinationFD implements stateio.AsyncReader.
func (r *reader) NeedRegisterDestinationFD() bool { return true }

// RegisterDestinationFD implements stateio.AsyncReader.
func (r *reader) RegisterDestinationFD(fd int32, _ uint64, _ []stateio.ClientFileRangeSetting) (stateio.DestinationFile, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pager: memory file: %w", err)
	}
	f := os.NewFile(uintptr(n), "memory")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = append(r.files, f)
	return f, nil
}

func (r *reader) add(id int, off int64, total uint64, to stateio.DestinationFile, at []memmap.FileRange) {
	j := readJob{id: id, off: off, size: total, at: at}
	j.to, _ = to.(*os.File)
	if off < 0 || j.to == nil || total > r.MaxReadBytes() { // the engine is not trusted
		r.done <- stateio.Completion{ID: id, Err: unix.EINVAL}
		return
	}
	if r.seen == nil {
		r.jobs <- j
		return
	}
	size := r.f.Size()
	for r.next < size && r.seen[r.next/pageSize] {
		r.next += pageSize
	}
	ordered := off == r.next
	for o := off; o < off+int64(total) && o < size; o += pageSize {
		r.seen[o/pageSize] = true
	}
	if !ordered {
		r.s.faults.Add(1)
		j.awaited = true
		r.jobs <- j
		return
	}
	r.next = off + int64(total)
	r.s.bulk.hold(heldRead{size: total, out: func() { r.later <- j }}) // it has room for every slot
}

func (r *reader) work(jobs <-chan readJob, f File) {
	var buf []byte
	for j := range jobs {
		if buf == nil { // many have nothing to do
			buf = make([]byte, r.MaxReadBytes())
		}
		c := stateio.Completion{ID: j.id}
		n, err := f.ReadAt(buf[:j.size], j.off)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			c.Err = unix.EIO
		case n == 0:
			c.Err = io.EOF
		default:
			if err = scatter(j.to, j.at, buf[:n]); err != nil {
				c.Err = unix.EIO
			}
		}
		if errors.Is(c.Err, unix.EIO) {
			r.s.fail(err)
		} else {
			c.N = uint64(n)
		}
		if r.seen != nil {
			r.s.read.Add(int64(c.N))
		}
		r.done <- c
		if j.awaited {
			r.s.bulk.hasten() // the guest goes on, and soon waits for another
		}
	}
}

// scatter writes what was read to its places, of neighbours at once.
func scatter(f *os.File, at []memmap.FileRange, b []byte) error {
	for len(at) > 0 && len(b) > 0 {
		place := at[0]
		for at = at[1:]; len(at) > 0 && at[0].Start == place.End; at = at[1:] {
			place.End = at[0].End
		}
		n := min(place.Length(), uint64(len(b)))
		if _, err := f.WriteAt(b[:n], int64(place.Start)); err != nil {
			return fmt.Errorf("pager: writing into the sandbox's memory: %w", err)
		}
		b = b[n:]
	}
	return nil
}

func (r *reader) AddRead(id int, off int64, to stateio.DestinationFile, at memmap.FileRange, _ []byte) {
	r.add(id, off, at.Length(), to, []memmap.FileRange{at})
}

func (r *reader) AddReadv(id int, off int64, total uint64, to stateio.DestinationFile, at []memmap.FileRange, _ []unix.Iovec) {
	r.add(id, off, total, to, slices.Clone(at))
}

func (r *reader) Wait(cs []stateio.Completion, n int) ([]stateio.Completion, error) {
	return stateio.CompletionChanWait(r.done, cs, n)
}

func (r *reader) Close() error {
	r.closed()
	close(r.jobs)
	close(r.later)
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.files {
		_ = f.Close() // what was written to it is in memory
	}
	return nil
}

func (r *reader) MaxReadBytes() uint64 {
	if r.seen == nil {
		return maxStateBytes
	}
	return maxReadBytes
}
func (r *reader) MaxRanges() int   { return maxRanges }
func (r *reader) MaxParallel() int { return maxReads }
