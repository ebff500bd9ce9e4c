// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"sync"
	"time"
)

const (
	// mostStayers bounds the helpers that wait for another capture: each has 20 MB,
	// and 2 MB of page tables for each GiB of its guest.
	mostStayers = 8
	// stayTime is how long one waits.
	stayTime = 10 * time.Minute
)

// stayers are helpers that have captured a generation and wait for its next
// capture, with the guest's memory mapped.
type stayers struct {
	ending *sync.WaitGroup // of those that are dismissed

	mu     sync.Mutex
	by     map[string]*stayer // by generation
	closed bool
}

type stayer struct {
	*helperProc
	since time.Time
	limit *time.Timer
}

// take gives the one of a generation, nil where there is none.
func (s *stayers) take(generation string) *helperProc {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.by[generation]
	if h == nil {
		return nil
	}
	delete(s.by, generation)
	h.limit.Stop()
	return h.helperProc
}

// put has a helper wait, in the place of the one that has waited longest where
// there are too many.
func (s *stayers) put(generation string, h *helperProc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.dismiss(h)
		return
	}
	if len(s.by) >= mostStayers {
		oldest := ""
		for g, o := range s.by {
			if oldest == "" || o.since.Before(s.by[oldest].since) {
				oldest = g
			}
		}
		s.remove(oldest)
	}
	s.remove(generation)
	if s.by == nil {
		s.by = map[string]*stayer{}
	}
	s.by[generation] = &stayer{helperProc: h, since: time.Now(), limit: time.AfterFunc(stayTime, func() { s.expire(generation, h) })}
}

// expire dismisses a helper that has waited for its time.
func (s *stayers) expire(generation string, h *helperProc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.by[generation]; now != nil && now.helperProc == h {
		s.remove(generation)
	}
}

// drop dismisses the one of a generation, which ends. The memory of its guest goes
// when nobody has it mapped any more: then the channel is closed.
func (s *stayers) drop(generation string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(generation)
}

// remove dismisses the one of a generation, if there is one. s.mu is held.
func (s *stayers) remove(generation string) (gone <-chan struct{}) {
	h := s.by[generation]
	if h == nil {
		none := make(chan struct{})
		close(none)
		return none
	}
	h.limit.Stop()
	delete(s.by, generation)
	return s.dismiss(h.helperProc)
}

// dismiss ends a helper; the channel is closed when it is gone.
func (s *stayers) dismiss(h *helperProc) <-chan struct{} {
	gone := make(chan struct{})
	s.ending.Go(func() { // to unmap a gigabyte takes a while
		defer close(gone)
		h.dismiss()
	})
	return gone
}

// close dismisses all, and those that are still to come.
func (s *stayers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for g := range s.by {
		s.remove(g)
	}
}
