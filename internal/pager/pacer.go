// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// impatient and patient bound how long the engine is kept waiting for the
	// next read of the bulk, just after a page was waited for and when none was
	// for long.
	impatient = time.Millisecond
	patient   = 64 * time.Millisecond
)

// pacer holds the reads of the bulk back so that they come at a rate.
//
// The engine fills all its read slots with the bulk and can ask for a page that
// its guest waits for only when one of them completes. So a completion is also
// the engine's chance to ask, and it costs the engine and the pager a wake-up:
// with a hundred sandboxes that load slowly, these were 40 % of all CPU time.
// A guest touches pages in bursts. Therefore the chances are rare while nothing
// is waited for, and quick for a moment after something was; what came early is
// made up for later.
type pacer struct {
	rate *atomic.Int64 // bytes/s; 0: unlimited
	out  func(readJob) // must not block

	mu       sync.Mutex
	held     []readJob
	timer    *time.Timer
	closed   bool
	patience time.Duration // the longest wait for the next read, whatever the rate
	owed     float64       // bytes that went out ahead of the rate
	settled  time.Time     // when owed was right
}

func newPacer(rate *atomic.Int64, out func(readJob)) *pacer {
	p := &pacer{rate: rate, out: out, patience: impatient, settled: time.Now()}
	p.timer = time.AfterFunc(0, p.next)
	return p
}

// hold lets a read out when it is its turn.
func (p *pacer) hold(j readJob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, j)
	if len(p.held) == 1 {
		p.arm()
	}
}

// hasten is told of a page that was waited for: more will be.
func (p *pacer) hasten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.patience = impatient
	if len(p.held) > 0 {
		p.arm()
	}
}

// arm sets the timer for the first of the held. p.mu is held.
func (p *pacer) arm() {
	rate, now := float64(p.rate.Load()), time.Now()
	if rate == 0 {
		p.owed, p.settled = 0, now
		p.timer.Reset(0)
		return
	}
	p.owed = max(0, p.owed-now.Sub(p.settled).Seconds()*rate)
	p.settled = now
	wait := min(p.owed/rate, p.patience.Seconds())
	p.timer.Reset(time.Duration(wait * float64(time.Second)))
}

// next lets the first of the held out.
func (p *pacer) next() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.held) == 0 {
		return
	}
	j := p.held[0]
	p.held = p.held[1:]
	p.owed += float64(j.size)
	p.patience = min(2*p.patience, patient)
	if len(p.held) > 0 {
		p.arm()
	}
	p.out(j)
}

// close drops what is held: nobody waits for it any more.
func (p *pacer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.timer.Stop()
}
