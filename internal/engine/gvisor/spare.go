// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spareDelay is how long after a capture memory for the next one is made ready:
	// those who wait for that capture want the CPUs first.
	spareDelay = 200 * time.Millisecond
	// spareTime is how long it is kept: somebody who captures again and again comes
	// sooner.
	spareTime = 8 * time.Second
	// spareMost bounds it, in bytes.
	spareMost = 64 << 20
	// spareFactor is how much of it there is of what the last capture copied: as much as
	// the next one is expected to copy.
	spareFactor = 2
	// spareStep is how much is asked of the kernel at a time, in bytes.
	spareStep = 1 << 20
	// idlest is the priority (setpriority(2)) of who asks: after all others.
	idlest = 19
)

// spare is memory for the pages of the next capture. That has to have it before the
// freeze, and what takes 1 µs a page on one machine takes 5 on another, whose
// hypervisor has to find it.
type spare struct {
	mu     sync.Mutex
	order  *time.Timer // for what is to come; nil: nothing is
	making bool
	file   *os.File    // nil: there is none
	limit  *time.Timer // of the file
	closed bool
}

// take gives the memory, if there is any and it is of use.
func (s *spare) take(use bool) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !use || s.file == nil {
		return nil
	}
	f := s.file
	s.limit.Stop()
	s.file = nil
	return f
}

// want has so many bytes made ready, in a while, unless something else is wanted
// before.
func (s *spare) want(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.order != nil {
		s.order.Stop()
	}
	if !s.closed && bytes > 0 && bytes <= spareMost {
		s.order = time.AfterFunc(spareDelay, func() { s.make(bytes) })
	}
}

// make makes memory ready. It is an optimisation: on an error there is none.
func (s *spare) make(bytes int64) {
	s.mu.Lock()
	busy := s.closed || s.making || s.file != nil
	s.making = s.making || !busy
	s.mu.Unlock()
	if busy {
		return
	}
	f, err := readied(bytes)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making = false
	switch {
	case err != nil:
	case s.closed:
		_ = f.Close() // memory
	default:
		s.file, s.limit = f, time.AfterFunc(spareTime, func() { s.drop(f) })
	}
}

// readied makes a file of memory that is there, at leisure.
func readied(bytes int64) (*os.File, error) {
	f, err := memfd("pages", bytes)
	if err != nil {
		return nil, err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its priority
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, idlest)
		done <- touchAll(f, int(bytes))
	}()
	if err := <-done; err != nil {
		return nil, errors.Join(fmt.Errorf("engine: arena: %w", err), f.Close())
	}
	return f, nil
}

// touchAll has the kernel find memory for a file, and clear it: what is only allocated
// for it (fallocate(2)) is cleared by who touches it first, who would wait for a
// hypervisor then.
func touchAll(f *os.File, bytes int) error {
	mem, err := unix.Mmap(int(f.Fd()), 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	for at := 0; err == nil && at < bytes; at += spareStep {
		err = unix.Madvise(mem[at:min(at+spareStep, bytes)], unix.MADV_POPULATE_WRITE)
	}
	if mem != nil {
		err = errors.Join(err, unix.Munmap(mem))
	}
	return err
}

// drop gives back what nobody came for.
func (s *spare) drop(f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == f {
		_ = f.Close() // memory
		s.file = nil
	}
}

// close gives it back, and makes no more.
func (s *spare) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.want(0)
	if f := s.take(true); f != nil {
		_ = f.Close() // memory
	}
}
