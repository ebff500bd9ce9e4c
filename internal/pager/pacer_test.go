// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// paced is a pacer and the times at which its reads came out.
type paced struct {
	*pacer
	rate  atomic.Int64
	start time.Time
	out   []time.Duration
}

func newPaced(rate int64, reads int) *paced { return newPacedAmong(rate, reads, 1) }

// newPacedAmong is newPaced for one of n that load at once.
func newPacedAmong(rate int64, reads, n int) *paced {
	p := &paced{start: time.Now()}
	p.rate.Store(rate)
	p.pacer = newPacer(&p.rate, n)
	p.nap = time.Sleep // in the time of the test
	for range reads {
		p.hold(heldRead{maxReadBytes, func() { p.out = append(p.out, time.Since(p.start)) }})
	}
	return p
}

// close ends it, and what waits in it.
func (p *paced) close() {
	p.pacer.close()
	p.count(patient)
}

// count is how many reads came out in a time from now on.
func (p *paced) count(d time.Duration) int {
	p.mu.Lock()
	before := len(p.out)
	p.mu.Unlock()
	time.Sleep(d)
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.out) - before
}

// The bulk keeps to its rate, until somebody is in a hurry.
func TestRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaced(100*maxReadBytes, 1000)
		defer p.close()
		p.begin()
		if n := p.count(2 * time.Second); n < 199 || n > 201 {
			t.Errorf("%d reads in two seconds at 100 a second", n)
		}
		p.rate.Store(1)
		if n := p.count(10 * time.Second); n < 150 || n > 160 {
			t.Errorf("%d reads in ten seconds, want one in each %v", n, patient)
		}
		p.rate.Store(0)
		if p.count(patient); len(p.out) != 1000 {
			t.Errorf("%d reads of 1000 came out when there was no bound", len(p.out))
		}
	})
}

// One of many that load at once, whose guest runs and waits for nothing, is quiet
// until the bulk is to come; a page that it waits for is not late, and what
// follows comes quickly.
func TestQuietAmongMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		p := newPacedAmong(0, 1000, n)
		defer p.close()
		p.run()
		if got := p.count(2 * patient); got < burst || got > burst+10 {
			t.Errorf("%d reads at once after the guest began to run, want %d and a few", got, burst)
		}
		const second = earlyAll / n / maxReadBytes // reads
		if got, want := p.count(calm-2*patient), second; got < want-want/5 || got > want+want/20 {
			t.Errorf("%d reads before it was calm, want nearly %d, the bound lifted before the bulk was to come", got, want)
		}
		if got, want := p.count(10*time.Second), 10*second/calmer; got < want-want/10 || got > want+want/10 {
			t.Errorf("%d reads in ten seconds in which nothing was waited for, want %d", got, want)
		}
		p.hasten()
		if got := p.count(15 * impatientMost); got < 3 {
			t.Errorf("%d reads just after a page was waited for", got)
		}
		p.begin()
		if p.count(patient); len(p.out) != 1000 {
			t.Errorf("%d reads of 1000 came out when the bulk was to come without a bound", len(p.out))
		}
	})
}

// A guest that goes through its memory in the bulk's order is not kept waiting long
// where the bulk is still to come.
func TestEarly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaced(0, 10_000)
		defer p.close()
		p.run()
		p.count(calm / 2)
		if got, want := p.count(calm/2), int(calm/2/alert); got < want-want/20 || got > want+want/20 {
			t.Errorf("%d reads in half a second, want %d", got, want)
		}
	})
}

// The bulk comes to its full rate in a while.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const full = 8 * early / maxReadBytes // reads a second
		p := newPaced(full*maxReadBytes, 100_000)
		defer p.close()
		p.begin()
		if got := p.count(doubling); got > full/8 {
			t.Errorf("%d reads at first, in %v", got, doubling)
		}
		p.count(2 * doubling)
		if got := p.count(time.Second); got < full-full/20 || got > full+full/20 {
			t.Errorf("%d reads in a second later on, want %d", got, full)
		}
	})
}

// Before the bulk is to come there is little of it, and then it comes soon.
func TestBegin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaced(100*maxReadBytes, 1000)
		defer p.close()
		if n := p.count(2 * time.Second); n > 40 {
			t.Errorf("%d reads in two seconds before the bulk is to come", n)
		}
		p.begin()
		if n := p.count(time.Second); n < 95 {
			t.Errorf("only %d reads in a second at 100 a second", n)
		}
		p.rate.Store(0)
		p.count(patient)
		if len(p.out) != 1000 {
			t.Errorf("%d reads of 1000 came out when there was no bound", len(p.out))
		}
	})
}

// After a page was waited for the engine gets chances to ask for more, quickly
// first; what came early is made up for.
func TestHasten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaced(20*maxReadBytes, 1000)
		defer p.close()
		p.begin()
		p.count(2 * time.Second)
		p.hasten()
		if n := p.count(2 * impatient); n != 1 {
			t.Errorf("%d reads just after a page was waited for, want 1", n)
		}
		if n := p.count(100 * impatient); n < 5 {
			t.Errorf("only %d reads in a moment after a page was waited for", n)
		}
		p.count(2 * time.Second)
		if n := len(p.out); n < 75 || n > 95 {
			t.Errorf("%d reads in four seconds at 20 a second", n)
		}
	})
}

// Alone, a guest that waits for one page after the other has the next one's chance
// in a fraction of a millisecond, for which no timer is used: see nap.
func TestChancesComeShortly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaced(0, 10_000)
		defer p.close()
		var naps atomic.Int64
		p.nap = func(d time.Duration) {
			naps.Add(1)
			time.Sleep(d)
		}
		p.run()
		p.count(time.Second)
		for i := range 10 {
			before := naps.Load()
			p.hasten()
			if got := p.count(2 * impatient); got != 1 || naps.Load() == before {
				t.Errorf("%d: %d reads, %d naps just after a page was waited for", i, got, naps.Load()-before)
			}
		}
	})
}

// Nothing comes out of a closed pacer.
func TestClosedPacer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPaced(maxReadBytes, 10)
		p.close()
		if n := p.count(time.Minute); n > 1 {
			t.Errorf("%d reads came out", n)
		}
	})
}
