// SPDX-License-Identifier: Apache-2.0

package store

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"
)

const (
	// keptSegments is how many of the last segments are kept for one reader of an
	// image, and keptReaders for how many readers at most: 32 MiB then.
	keptSegments = 16
	keptReaders  = 8
)

// recent keeps the segments read last, because pages are asked for in pieces,
// and by all who load the same image, and sees that nobody fetches what somebody
// is fetching.
type recent struct {
	mu     sync.Mutex
	kept   []*lastRead // a ring
	next   int
	flying map[int]*lastRead // being fetched
}

type lastRead struct {
	segment int
	done    chan struct{}
	b       []byte
	err     error
}

// widen has it keep enough for so many readers. It is called before the first
// read.
func (r *recent) widen(readers int) {
	r.kept = make([]*lastRead, keptSegments*min(max(readers, 1), keptReaders))
}

func (r *recent) find(segment int) (l *lastRead, kept bool) {
	for _, l := range r.kept {
		if l != nil && l.segment == segment {
			return l, true
		}
	}
	return r.flying[segment], false
}

func (r *recent) has(segment int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, _ := r.find(segment)
	return l != nil
}

// get gives a segment; with keep it will be asked for again.
func (r *recent) get(segment int, keep bool, fetch func() ([]byte, error)) ([]byte, error) {
	r.mu.Lock()
	l, kept := r.find(segment)
	found := l != nil
	if !found {
		l = &lastRead{segment: segment, done: make(chan struct{})}
		if r.flying == nil {
			r.flying = map[int]*lastRead{}
		}
		r.flying[segment] = l
	}
	if keep && !kept {
		r.kept[r.next], r.next = l, (r.next+1)%len(r.kept)
	}
	r.mu.Unlock()
	if found {
		<-l.done
		return l.b, l.err
	}
	l.b, l.err = fetch()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flying, segment)
	if i := slices.Index(r.kept[:], l); l.err != nil && i >= 0 { // to be tried again
		r.kept[i] = nil
	}
	close(l.done)
	return l.b, l.err
}

// proven has a cheap hash of each stored segment that matched its strong hash, so
// that this is checked once by each process: as what is in the local cache, what
// is read again only has to be what it was. The seed is nobody else's.
type proven struct {
	seed uint64
	sums []atomic.Uint64 // by segment; 0: not known
}

func newProven(segments int) proven {
	return proven{seed: rand.Uint64(), sums: make([]atomic.Uint64, segments)}
}

func (k *proven) is(segment int, b []byte) bool {
	sum := k.sums[segment].Load()
	return sum != 0 && sum == xxh3.HashSeed(b, k.seed)
}

func (k *proven) add(segment int, b []byte) { k.sums[segment].Store(xxh3.HashSeed(b, k.seed)) }
