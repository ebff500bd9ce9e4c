// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/store"
)

const (
	// captureOverhead is what a capture takes of memory besides the arena's
	// pages, in bytes: the helper, the engine's object graph, and 64 MiB at most
	// that the guest never touched.
	captureOverhead = 128 << 20
	// graphGrowth is how much larger the engine's object graph is in memory than
	// in a checkpoint (measured: 100 MB of 28 MB, for 20,000 files).
	graphGrowth = 4
)

// loads is what a generation that is restored from a checkpoint loads into
// memory, in bytes. What it loads of the disk is the disk's.
func loads(stateSize int64, ranges []engine.PageRange) int64 {
	n := stateSize * graphGrowth
	for _, r := range ranges {
		if r.Source == 0 {
			n += int64(r.Length)
		}
	}
	return n
}

// room is a capture's share of the memory for arenas. The zero value has none:
// the capture goes through the disk.
type room struct {
	bytes int64
	leave func() // once or more often; nil for the zero value
}

// giveBack ends it, if there is any.
func (r room) giveBack() {
	if r.leave != nil {
		r.leave()
	}
}

// reserve waits until the budget has room for a generation's capture: for all of
// its pages, though on a base only few may be copied, because how many is known
// only when it is frozen. First come, first served, so that a large one gets its
// turn. One that is larger than the whole budget gets no room. What the guest
// adds while this waits is not in the number: the memory itself is admitted just
// before the freeze.
func (s *Service) reserve(ctx context.Context, proc engine.Process, gen meta.Generation) (room, error) {
	need := s.most(ctx, proc, gen) + captureOverhead
	if need > s.cfg.Budget {
		s.cfg.Log.Warn("capturing through the disk, the pause will be longer", "sandbox", gen.SandboxID,
			"reason", fmt.Sprintf("it may take %d MB; the memory for captures is %d MB", need>>20, s.cfg.Budget>>20))
		return room{}, nil
	}
	if err := s.arenas.Acquire(ctx, need); err != nil {
		return room{}, fmt.Errorf("checkpoint: waiting for the memory that other captures hold: %w", context.Cause(ctx))
	}
	return room{bytes: need, leave: sync.OnceFunc(func() {
		s.arenas.Release(need)
		s.tidy.Reset(tidyDelay)
	})}, nil
}

// tidyDelay is how long after the last capture the memory goes back to the machine
// that was needed for storing them and that the runtime keeps: long enough that
// captures in a row do not pay for it, and within what is promised for an arena.
const tidyDelay = 3 * time.Second

// most is what a generation's pages may take, in bytes.
func (s *Service) most(ctx context.Context, proc engine.Process, gen meta.Generation) int64 {
	mem, dsk := s.cfg.Engine.Usage(proc)
	need := mem + dsk
	if len(gen.Pager) > 0 { // it still loads, and will have all of it
		if from, err := s.cfg.Meta.CheckpointAnyOrg(ctx, gen.Checkpoint); err == nil {
			need = max(need, from.SizeBytes)
		}
	}
	return need
}

// frozen is a capture, what it is of, and the checkpoint that it is based on.
type frozen struct {
	*engine.Capture
	proc  engine.Process
	gen   meta.Generation
	base  *store.Image // nil: it holds all pages
	users atomic.Int32 // beside the first
	// progress, unless nil, is told the bytes of it that are stored, and all.
	progress func(done, total int64)
}

// hold adds a user, who closes it too.
func (f *frozen) hold() { f.users.Add(1) }

// close ends a use; with the last one the memory goes.
func (f *frozen) close() {
	if f.users.Add(-1) >= 0 {
		return
	}
	f.Close()
	if f.base != nil {
		f.base.Close()
	}
}

// freeze is the engine's Capture, when there is room and memory for it, of what
// differs from the parent. before, unless nil, is called before anything is frozen, and
// may refuse.
func (s *Service) freeze(ctx context.Context, proc engine.Process, gen meta.Generation, p *parent, before func() error) (*frozen, error) {
	r, err := s.reserve(ctx, proc, gen)
	if err != nil {
		return nil, err
	}
	return s.admitted(ctx, proc, gen, p, r, func(opts engine.CaptureOptions) (*engine.Capture, error) {
		opts.BeforeFreeze = before
		return s.cfg.Engine.Capture(ctx, proc, opts)
	})
}

// freezeHeld is the engine's CaptureHeld in room that was reserved before, so
// that nobody waits for it while the sandbox's calls do: freezes is called when all is
// ready.
func (s *Service) freezeHeld(ctx context.Context, old sandbox.Replaced, p *parent, r room, freezes func() error) (f *frozen, held engine.Held, err error) {
	f, err = s.admitted(ctx, old.Process, old.Generation, p, r, func(opts engine.CaptureOptions) (c *engine.Capture, err error) {
		opts.BeforeFreeze = freezes
		c, held, err = s.cfg.Engine.CaptureHeld(ctx, old.Process, opts, sandbox.HoldLimit)
		return c, err
	})
	return f, held, err
}

// admitted captures with the memory for it claimed until the arena has it. The
// room is given back with the capture's Close, or here if there is no capture.
func (s *Service) admitted(ctx context.Context, proc engine.Process, gen meta.Generation, p *parent, r room, capture func(engine.CaptureOptions) (*engine.Capture, error)) (*frozen, error) {
	budget, claim, err := s.admit(ctx, proc, gen, r)
	if err != nil {
		r.giveBack()
		return nil, err
	}
	defer claim.Release()
	defer s.cfg.Sandboxes.Quiet()()
	if budget == 0 {
		r.giveBack() // it goes through the disk
	}
	f := &frozen{proc: proc, gen: gen}
	opts := engine.CaptureOptions{Budget: budget, Bytes: s.most(ctx, proc, gen)}
	if f.base, opts.Base = p.take(); f.base != nil {
		opts.Expect = expected(f.base.Manifest())
	}
	c, err := capture(opts)
	if err != nil {
		if f.base != nil {
			f.base.Close()
		}
		r.giveBack()
		return nil, err
	}
	free := c.Close
	c.Close = func() {
		free()
		r.giveBack()
	}
	f.Capture = c
	return f, nil
}

// admit claims the memory that the arena of a generation's capture takes, and
// gives the budget of that capture: 0, for one through the disk, where it has no
// room or the memory is not there.
func (s *Service) admit(ctx context.Context, proc engine.Process, gen meta.Generation, r room) (budget int64, claim *admission.Claim, err error) {
	need := s.most(ctx, proc, gen)
	what := "a checkpoint of sandbox " + gen.SandboxID
	if r.bytes > 0 {
		claim, err = s.cfg.Memory.Claim(what, need+captureOverhead)
		if err == nil {
			return s.cfg.Budget, claim, nil
		}
		s.cfg.Log.Warn("capturing through the disk, the pause will be longer", "sandbox", gen.SandboxID, "reason", err)
	}
	free, err := s.cfg.DataFree()
	if err != nil {
		return 0, nil, err
	}
	if twice := 2*need + spaceMargin; free < twice {
		return 0, nil, fault.New(fault.Unavailable, "no space for %s: it does not fit in memory, and through the disk it takes up to %d MB, of which %d MB are free",
			what, twice>>20, free>>20).WithHint("free some memory or space, for instance by stopping sandboxes or deleting checkpoints, and try again")
	}
	claim, err = s.cfg.Memory.Claim(what, captureOverhead)
	return 0, claim, err
}
