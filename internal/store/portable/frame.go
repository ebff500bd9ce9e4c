// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"runtime"
	"sync"
)

// frame is a piece of the contents, compressed by itself, so that all CPUs can
// work on a stream. The frames of a stream are in a ring of which the caller's
// goroutine alone keeps the order; a frame belongs to another goroutine only
// while work runs.
type frame struct {
	raw    []byte
	packed []byte
	done   int64 // bytes of files up to the end of it
	err    error // of unpacking
	work   sync.WaitGroup
}

// frameHeader precedes each frame: u32 length of the contents, u32 length of
// what follows. Both are 0 in the one that ends the stream.
const frameHeader = 4 + 4

// ring is a queue of frames in use, and the free ones behind them.
type ring struct {
	frames []frame
	oldest int
	busy   int
}

func newRing() ring { return ring{frames: make([]frame, 2*workers()+1)} }

// workers is how many frames are worked on at once. Hashing is one after the
// other and keeps up with no more than a few CPUs that compress.
func workers() int { return min(runtime.GOMAXPROCS(0), 16) }

// free is the frame behind those in use, of which there must be less than all.
func (r *ring) free() *frame { return &r.frames[(r.oldest+r.busy)%len(r.frames)] }

// full tells that one frame is free, and no more.
func (r *ring) full() bool { return r.busy == len(r.frames)-1 }

// start puts the free frame to work.
func (r *ring) start(f func(*frame)) {
	fr := r.free()
	fr.work.Go(func() { f(fr) })
	r.busy++
}

// take waits for the oldest frame and takes it out of the queue. It is the last
// one to become the free one.
func (r *ring) take() *frame {
	f := &r.frames[r.oldest]
	f.work.Wait()
	r.oldest = (r.oldest + 1) % len(r.frames)
	r.busy--
	return f
}

// wait ends all work.
func (r *ring) wait() {
	for r.busy > 0 {
		r.take()
	}
}
