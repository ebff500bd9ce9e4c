// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
type Files struct{ State, Meta, Pages File }

// Server serves one checkpoint to one restored generation.
type Server struct {
	files  map[string]File
	failed func(error)  // told once, when a page cannot be had
	rate   atomic.Int64 // bytes/s of the bulk of the pages; 0 = unlimited
	read   atomic.Int64
	faults atomic.Int64
	once   sync.Once
}

// NewServer makes a server. rate bounds the bulk loading in bytes/s (0: not at
// all); failed is called once, with the first error of a read.
func NewServer(f Files, rate int64, failed func(error)) *Server {
	s := &Server{failed: failed, files: map[string]File{
		checkpointfiles.StateFileName:         f.State,
		checkpointfiles.PagesMetadataFileName: f.Meta,
		checkpointfiles.PagesFileName:         f.Pages,
	}}
	s.rate.Store(rate)
	return s
}

// Serve starts serving and gives the engine's end of the connection.
func (s *Server) Serve() (*os.File, error) { return serve(readServer{s}) }

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
	rd := &reader{s: r.s, f: f, done: make(chan stateio.Completion, maxReads), jobs: make(chan readJob, maxReads)}
	if path == checkpointfiles.PagesFileName {
		rd.seen = make([]bool, f.Size()/pageSize+1)
	}
	for range readWorkers {
		rd.wg.Go(rd.work)
	}
	return rd, nil
}

// Limits of the page protocol for loading. The engine fills all read slots
// with bulk reads and can only ask for a faulting page when one completes, so
// a slot must be short: 64 KiB at the paced rate is about a millisecond.
const (
	maxReads     = 8
	maxReadBytes = 64 << 10
	// maxStateBytes is for the files that the engine reads through, before
	// anything runs.
	maxStateBytes = 1 << 20
	readWorkers   = 2
)

type readJob struct {
	id  int
	off int64
	to  stateio.LocalClientRanges
}

// reader serves one file. The engine reads the pages file in order, except for
// pages that the guest waits for.
type reader struct {
	stateio.NoRegisterClientFD
	s    *Server
	f    File
	jobs chan readJob
	done chan stateio.Completion
	wg   sync.WaitGroup

	seen []bool    // pages asked for; nil: not the pages file
	next int64     // where the bulk reads go on
	due  time.Time // when the next bulk read may complete

	closing sync.WaitGroup // paced reads not yet handed to a worker
}

func (r *reader) add(id int, off int64, total uint64, to stateio.LocalClientRanges) {
	j := readJob{id: id, off: off, to: to}
	if off < 0 { // the engine is not trusted
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
	bulk := off == r.next
	for o := off; o < off+int64(total) && o < size; o += pageSize {
		r.seen[o/pageSize] = true
	}
	if !bulk {
		r.s.faults.Add(1)
		r.jobs <- j
		return
	}
	r.next = off + int64(total)
	rate := r.s.rate.Load()
	if rate == 0 {
		r.jobs <- j
		return
	}
	if now := time.Now(); r.due.Before(now) {
		r.due = now
	}
	r.due = r.due.Add(time.Duration(float64(total) / float64(rate) * float64(time.Second)))
	r.closing.Add(1)
	time.AfterFunc(time.Until(r.due), func() {
		defer r.closing.Done()
		r.jobs <- j // never blocks: it has room for every slot
	})
}

func (r *reader) work() {
	for j := range r.jobs {
		c := stateio.Completion{ID: j.id}
		off := j.off
		for _, m := range mappings(j.to) {
			n, err := r.f.ReadAt(m, off)
			c.N += uint64(n)
			off += int64(n)
			if err != nil && !errors.Is(err, io.EOF) {
				r.s.fail(err)
				c.N, c.Err = 0, unix.EIO
				break
			}
			if n < len(m) {
				break // end of file
			}
		}
		if r.seen != nil {
			r.s.read.Add(int64(c.N))
		}
		if c.N == 0 && c.Err == nil {
			c.Err = io.EOF
		}
		r.done <- c
	}
}

func (r *reader) AddRead(id int, off int64, _ stateio.DestinationFile, _ memmap.FileRange, m []byte) {
	r.add(id, off, uint64(len(m)), stateio.LocalClientMapping(m))
}

func (r *reader) AddReadv(id int, off int64, total uint64, _ stateio.DestinationFile, _ []memmap.FileRange, iovs []unix.Iovec) {
	r.add(id, off, total, stateio.LocalClientMappings(slices.Clone(iovs)))
}

func (r *reader) Wait(cs []stateio.Completion, n int) ([]stateio.Completion, error) {
	return stateio.CompletionChanWait(r.done, cs, n)
}

func (r *reader) Close() error {
	r.closing.Wait()
	close(r.jobs)
	r.wg.Wait()
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
