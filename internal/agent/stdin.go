// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// stdin is the way into a session's process. What is counted as taken is in
// the kernel's pipe: nothing is buffered here, and a caller that is interrupted
// finds its place again by the offset.
type stdin struct {
	f   *os.File // the write end of a pipe, or a terminal's master; in non-blocking mode
	tty bool

	turn chan struct{} // holds one token: whoever took it may write

	mu     sync.Mutex
	off    int64 // bytes taken
	closed bool
}

func newStdin(f *os.File, tty bool) *stdin {
	s := &stdin{f: f, tty: tty, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// write takes the bytes that begin at offset off, except those it already has.
// It waits while the process does not read.
func (s *stdin) write(ctx context.Context, off int64, p []byte) error {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()

	have, closed := s.state()
	switch {
	case off > have:
		return failf(wire.Invalid, "stdin has been taken up to offset %d, not to %d", have, off)
	case off+int64(len(p)) <= have:
		return nil
	case closed:
		return failf(wire.Conflict, "stdin of the session is closed")
	}
	defer s.interruptible(ctx)()
	n, err := s.f.Write(p[have-off:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off += int64(n)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EIO), errors.Is(err, os.ErrClosed):
		s.closed = true
		return failf(wire.Conflict, "the process does not read its stdin any more")
	}
	return err
}

// interruptible makes writes fail once ctx ends, until the result is called.
func (s *stdin) interruptible(ctx context.Context) (done func()) {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.f.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired
			_ = s.f.SetWriteDeadline(time.Time{})
		}
	}
}

// close ends the process's input, after what has been written.
func (s *stdin) close(ctx context.Context) error {
	if _, closed := s.state(); closed {
		return nil
	}
	select {
	case <-s.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()
	if s.tty { // only the program can end a terminal's input
		defer s.interruptible(ctx)()
		_, err := s.f.Write([]byte{eot})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ctx.Err()
		}
		return nil
	}
	s.shut()
	return nil
}

// shut closes the descriptor at once; a write in progress fails.
func (s *stdin) shut() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	_ = s.f.Close() // twice is harmless
}

func (s *stdin) state() (off int64, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.off, s.closed
}
