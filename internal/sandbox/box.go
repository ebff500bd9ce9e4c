// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

// box is what the server holds in memory for a sandbox.
type box struct {
	id   string
	slot chan struct{} // holds a token while an operation runs

	mu       sync.Mutex
	run      *Run
	gate     chan struct{} // not nil: calls wait until it is closed
	gates    int           // how many hold it closed
	op       context.CancelCauseFunc
	opName   string
	recovery error // why there is no run yet though the engine runs; nil: there is, or no engine
	dooms    int   // kills that wait
	doomed   error // why other operations end, while there are dooms
	leases   int
	active   time.Time // start of the rolling timeout
	touched  time.Time // last time that active was stored
	timeout  time.Duration
	expiring bool
}

func (s *Service) box(id string) *box {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.boxes[id]
	if b == nil {
		b = &box{id: id, slot: make(chan struct{}, 1), active: s.cfg.Now()}
		s.boxes[id] = b
	}
	return b
}

// forget drops the box of a sandbox that ended.
func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.boxes, id)
}

// lock takes the turn.
func (b *box) lock(ctx context.Context) error {
	select {
	case b.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *box) unlock() { <-b.slot }

func (b *box) current() (*Run, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.run, b.gate
}

// install makes r the current run and gives the one before.
func (b *box) install(r *Run) *Run {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.run
	b.run = r
	return old
}

func (b *box) take() *Run { return b.install(nil) }

// used tells whether the sandbox has a run.
func (b *box) used() bool {
	run, _ := b.current()
	return run != nil
}

// recovering notes why the sandbox has to be recovered, or cannot be yet; nil ends
// that.
func (b *box) recovering(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recovery = why
}

// whyRecovering says that the sandbox is being recovered, and why that takes its
// time; nil if it is not.
func (b *box) whyRecovering() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.recovery == nil || b.run != nil {
		return nil
	}
	return fault.Wrap(fault.Unavailable, b.recovery, "sandbox %s is being recovered, and runs on meanwhile: %s", b.id, b.recovery).
		WithHint("that is tried again by itself; a restore to one of its checkpoints, or a kill, ends it")
}

// closeGate makes calls wait; the function it gives lets them go on, when
// everybody who closed the gate has.
func (b *box) closeGate() (open func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gates == 0 {
		b.gate = make(chan struct{})
	}
	b.gates++
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.gates--; b.gates == 0 {
			close(b.gate)
			b.gate = nil
		}
	})
}

// doom ends the operation that runs, unless it is a kill too, and those that
// wait for their turn, until pardon is called.
func (b *box) doom(why error) (pardon func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dooms++
	b.doomed = why
	if b.op != nil && b.opName != opKill {
		b.op(why)
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.dooms--; b.dooms == 0 {
			b.doomed = nil
		}
	}
}

// begin notes the operation that has its turn; it fails if that shall not be.
func (b *box) begin(name string, cancel context.CancelCauseFunc) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.doomed != nil && name != opKill {
		return b.doomed
	}
	b.op, b.opName = cancel, name
	return nil
}

func (b *box) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.op, b.opName = nil, ""
}

func (b *box) operation() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opName
}

// use begins a use of the run of that generation, to be ended by end. Without
// one wait says what to wait for, or is nil too if another generation, or none,
// is the sandbox's.
func (b *box) use(generation string, now time.Time) (run *Run, wait <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gate != nil {
		return nil, b.gate
	}
	if b.run == nil || b.run.gen.ID != generation {
		return nil, nil
	}
	b.leases++
	b.active = now
	return b.run, nil
}

func (b *box) end(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases--
	b.active = now
}

// lastActive is the start of the rolling timeout: now, while somebody uses it.
func (b *box) lastActive(now time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.leases > 0 {
		return now
	}
	return b.active
}

func (b *box) touch(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active = now
}

func (b *box) setTimeout(seconds int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timeout = time.Duration(seconds) * time.Second
}
