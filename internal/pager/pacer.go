// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// impatient and patient bound how long the engine is kept waiting for the
	// next read of the bulk, just after a page was waited for and when none was
	// for long; alert is the latter of a guest that runs while the bulk is still to
	// come: it has its first answer to give. Where many load each is kept waiting
	// longer, in proportion to how many they are: impatientMost and patient at most.
	impatient     = 125 * time.Microsecond
	impatientMost = time.Millisecond
	alert         = 500 * time.Microsecond
	patient       = 64 * time.Millisecond
	// early is the rate of the bulk of one, in bytes/s, from when its guest runs until
	// the bulk is to come, and earlyAll that of all that load together. A guest that
	// goes through its memory in the order of the bulk waits for reads that are held
	// back already, and nothing tells them from others.
	early    = 32 << 20
	earlyAll = 192 << 20
	// Where the bulk is still to come and a guest has waited for no page for as long as
	// calm, it has given its first answer, and others are still coming up: what is loaded
	// then takes memory and CPU time early, and comes calmer times slower.
	calm   = time.Second
	calmer = 4
	// burst is how many reads come quickly when the guest begins to run, whatever the
	// rate: it may wait for any of them, and its agent is asked for an answer then.
	burst = 64
	// doubling is how long it takes the bulk's rate to double from there to what it
	// may be: who is there just then is about to do his first work.
	doubling = 500 * time.Millisecond
)

// pacer holds the reads of the bulk back so that they come at a rate.
//
// The engine fills all its read slots with the bulk and can ask for a page that
// its guest waits for only when one of them completes. So a completion is also
// the engine's chance to ask, and it costs the engine and the pager a wake-up:
// with a hundred sandboxes that load slowly, these were 40 % of all CPU time.
// A guest touches pages in bursts. Therefore the chances are rare while nothing
// is waited for, and quick for a moment after something was; what came early is
// made up for later. Before the bulk is to come there are only these chances: what
// is loaded then takes CPU time from the engine, which reads its state, and from
// those that shall answer.
type pacer struct {
	rate  *atomic.Int64       // bytes/s; 0: unlimited
	early float64             // bytes/s
	nap   func(time.Duration) // for less than a millisecond

	impatient, alert time.Duration // of one of so many

	mu       sync.Mutex
	held     []heldRead
	timer    *time.Timer // for what is a millisecond away or more
	turn     int         // of the last arm
	runs     bool        // the guest
	begun    time.Time   // the bulk; zero: it is still to come
	asked    time.Time   // when a page was waited for last
	closed   bool
	burst    int           // reads that still come quickly
	patience time.Duration // the longest wait for the next read, whatever the rate
	owed     float64       // bytes that went out ahead of the rate
	settled  time.Time     // when owed was right
}

// heldRead is a read of so many bytes that is to be let out, which must not
// block.
type heldRead struct {
	size uint64
	out  func()
}

// newPacer makes a pacer, one of so many that load together.
func newPacer(rate *atomic.Int64, together int) *pacer {
	p := &pacer{
		rate: rate, early: min(early, earlyAll/float64(together)), nap: nap, settled: time.Now(),
		impatient: min(impatient*time.Duration(together), impatientMost),
		alert:     min(alert*time.Duration(together), patient),
	}
	p.patience = impatientMost // nobody waits before the guest runs
	p.timer = time.AfterFunc(0, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.next()
	})
	return p
}

// run is told that the guest runs.
func (p *pacer) run() {
	p.mu.Lock()
	p.runs, p.burst = true, burst
	p.mu.Unlock()
	p.hasten() // what it touches first
}

// begin is told that the bulk is to come. A second time is nothing.
func (p *pacer) begin() {
	p.mu.Lock()
	first := p.begun.IsZero()
	if first {
		p.begun = time.Now()
	}
	p.mu.Unlock()
	if first {
		p.hasten()
	}
}

// hold lets a read out when it is its turn.
func (p *pacer) hold(r heldRead) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.held = append(p.held, r)
	if len(p.held) == 1 {
		p.arm()
	}
}

// hasten is told of a page that was waited for: more will be.
func (p *pacer) hasten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.patience, p.asked = p.impatient, time.Now()
	if len(p.held) > 0 {
		p.arm()
	}
}

// arm sets the timer for the first of the held. p.mu is held.
func (p *pacer) arm() {
	now := time.Now()
	rate := p.at(now)
	if math.IsInf(rate, 1) {
		p.owed, p.settled = 0, now
		p.in(0, false)
		return
	}
	p.owed = max(0, p.owed-now.Sub(p.settled).Seconds()*rate)
	p.settled = now
	wait, awaited := p.patience, true
	if paced := time.Duration(p.owed / rate * float64(time.Second)); paced < wait && (p.runs || !p.begun.IsZero()) {
		wait, awaited = paced, false
	}
	p.in(wait, awaited)
}

// in has the first of the held let out after a time, which must not get longer where
// a guest may wait for that. p.mu is held.
func (p *pacer) in(wait time.Duration, awaited bool) {
	p.turn++
	if wait >= time.Millisecond || !awaited {
		p.timer.Reset(wait)
		return
	}
	p.timer.Stop()
	turn := p.turn
	go func() {
		p.nap(wait)
		p.mu.Lock()
		defer p.mu.Unlock()
		if turn == p.turn {
			p.next()
		}
	}()
}

// nap waits for less than a millisecond, which the runtime's timers do not where the
// process has nothing else to do: they wait in epoll_wait(2), which counts
// milliseconds.
func nap(d time.Duration) {
	t := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&t, nil) // cut short is as good
}

// at is the rate at a time, in bytes/s. p.mu is held.
func (p *pacer) at(now time.Time) float64 {
	rate, early := float64(p.rate.Load()), p.early
	if p.isCalm(now) {
		early /= calmer
	}
	switch {
	case p.begun.IsZero() && rate == 0:
		return early
	case p.begun.IsZero():
		return min(rate, early)
	case rate == 0:
		return math.Inf(1)
	}
	return min(rate, p.early*math.Exp2(now.Sub(p.begun).Seconds()/doubling.Seconds()))
}

// next lets the first of the held out. p.mu is held.
func (p *pacer) next() {
	if len(p.held) == 0 {
		return
	}
	r := p.held[0]
	p.held = p.held[1:]
	if p.burst > 0 {
		p.burst--
	} else {
		p.owed += float64(r.size)
		p.patience = min(2*p.patience, p.longest(time.Now()))
	}
	if len(p.held) > 0 {
		p.arm()
	}
	r.out()
}

// longest is the longest wait for the next read at a time. p.mu is held.
func (p *pacer) longest(now time.Time) time.Duration {
	switch {
	case !p.runs || !p.begun.IsZero():
		return patient
	case p.isCalm(now):
		return calmer * p.alert
	}
	return p.alert
}

// isCalm tells whether the guest runs, waits for nothing, and the bulk is still to
// come. p.mu is held.
func (p *pacer) isCalm(now time.Time) bool {
	return p.runs && p.begun.IsZero() && now.Sub(p.asked) > calm
}

// close drops what is held: nobody waits for it any more.
func (p *pacer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held, p.closed = nil, true
	p.timer.Stop()
}
