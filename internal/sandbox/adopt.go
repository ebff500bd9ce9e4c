// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// Start adopts the sandboxes that run, removes what an earlier server left
// half made, and begins the background work: timeouts and reconciliation.
func (s *Service) Start(ctx context.Context) error {
	gens, err := s.cfg.Meta.Generations(ctx)
	if err != nil {
		return err
	}
	s.stopReplaced(ctx, gens)
	eachOf(gens, func(g meta.Generation) {
		if err := s.adopt(ctx, g); err != nil {
			s.cfg.Log.Error("adopting", "generation", g.ID, "sandbox", g.SandboxID, "error", err)
		}
	})
	if err := s.settleRows(ctx); err != nil {
		return err
	}
	if err := s.sweep(ctx); err != nil { // what is left is tried again every minute
		s.cfg.Log.Error("removing what an earlier server left", "error", err)
	}
	s.wg.Go(s.timeouts)
	s.wg.Go(s.reconcile)
	return nil
}

// adoptAtOnce bounds how many generations are adopted side by side: one whose
// agent does not answer must not keep the others waiting.
const adoptAtOnce = 16

// adopt takes up a generation found in the metadata, or ends it.
func (s *Service) adopt(ctx context.Context, g meta.Generation) error {
	sb, err := s.cfg.Meta.SandboxAnyOrg(ctx, g.SandboxID)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err == nil && g.State == meta.GenerationSaving && s.cfg.Keep != nil {
		s.keepLater(g.ID, 0)
		return nil
	}
	if err != nil || !adoptable(g.State) || sb.State != meta.SandboxRunning || sb.GenerationID != g.ID {
		return s.discard(ctx, g)
	}
	run, err := s.resume(ctx, g)
	if err == nil {
		s.takeUp(ctx, s.box(sb.ID), sb, run)
		return nil
	}
	proc, e := engine.DecodeProcess(g.Process)
	if e == nil && s.cfg.Engine.Alive(proc) && s.cfg.Recover != nil {
		s.recoverLater(sb, g, err)
		return nil
	}
	if e == nil {
		err = s.mourn(ctx, g, proc, err)
	}
	return s.Operate(ctx, sb.ID, "end", func(ctx context.Context, op *Operation) error { // nothing to wait for
		return op.end(ctx, meta.SandboxError, err.Error())
	})
}

// takeUp makes a run that was adopted the sandbox's.
func (s *Service) takeUp(ctx context.Context, b *box, sb meta.Sandbox, run *Run) {
	b.setTimeout(sb.TimeoutSec)
	b.touch(sb.LastActiveAt)
	run.loss = func() error { return s.cfg.Engine.Loss(run.proc) }
	if len(run.gen.Pager) > 0 {
		s.followPager(b, run, s.owed(ctx, run))
	}
	b.install(run)
	s.watch(b, run)
}

// mourn gives why a generation ended while there was no server: as its pager says,
// whose damage is heard of like that of a run, or else as was found.
func (s *Service) mourn(ctx context.Context, g meta.Generation, proc engine.Process, found error) error {
	why := s.cfg.Engine.Loss(proc)
	if why == nil {
		return found
	}
	if s.cfg.Lost != nil {
		s.cfg.Lost(ctx, g.Checkpoint, why)
	}
	return why
}

// adoptable tells whether a generation of that state may be a sandbox.
func adoptable(s meta.GenerationState) bool {
	return s == meta.GenerationLive || s == meta.GenerationHeld || s == meta.GenerationFreezing
}

// eachOf does something with generations, some of them side by side.
func eachOf(gens []meta.Generation, do func(meta.Generation)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, adoptAtOnce)
	for _, g := range gens {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			do(g)
		})
	}
	wg.Wait()
}

// resume makes a run of a generation that runs already.
func (s *Service) resume(ctx context.Context, g meta.Generation) (*Run, error) {
	proc, err := engine.DecodeProcess(g.Process)
	if err != nil {
		return nil, fmt.Errorf("the record of its engine process cannot be read: %w", err)
	}
	if !s.cfg.Engine.Alive(proc) {
		return nil, errors.New("its engine process ended while the server was down")
	}
	files, err := s.cfg.Keeper.Get(ctx, g.ID)
	if err == nil && len(files) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("the keeper does not hold its channel: %w", err)
	}
	for _, f := range files {
		defer f.Close()
	}
	agent, err := agentclient.New(files[0], s.cfg.Log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AdoptTimeout)
	defer cancel()
	if err := s.letGo(ctx, &g, proc, agent); err != nil {
		return nil, errors.Join(err, agent.Close())
	}
	if _, err := agent.Hello(ctx, agentclient.HelloRequest{Generation: g.ID, Timeline: g.Timeline}); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errSilent, err), agent.Close())
	}
	if g.State == meta.GenerationFreezing { // it goes on
		g.State = meta.GenerationLive
		if err := s.cfg.Meta.UpdateGeneration(ctx, &g); err != nil {
			return nil, errors.Join(err, agent.Close())
		}
	}
	return &Run{gen: g, proc: proc, agent: agent, changed: make(chan struct{})}, nil
}

// errSilent says that a generation's channel is there, and its agent may yet answer.
var errSilent = errors.New("its agent does not answer")

// adoptTimeout is the default of Config.AdoptTimeout.
const adoptTimeout = 20 * time.Second

// heldSilence is how long a held generation may take to show that it runs.
const heldSilence = 3 * time.Second

// letGo lets a generation go on that an earlier server held at the end of a
// restore, if it had not got round to it: the engine must not be resumed twice.
func (s *Service) letGo(ctx context.Context, g *meta.Generation, proc engine.Process, agent *agentclient.Client) error {
	if g.State != meta.GenerationHeld {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, heldSilence)
	_, err := agent.Hello(short, agentclient.HelloRequest{Generation: g.ID, Timeline: g.Timeline})
	cancel()
	if err != nil {
		if err := s.cfg.Engine.Resume(ctx, proc); err != nil {
			return fmt.Errorf("it cannot go on after a restore: %w", err)
		}
	}
	g.State = meta.GenerationLive
	return s.cfg.Meta.UpdateGeneration(ctx, g)
}

// followPager waits for the pager of an earlier server to end: by then the run
// is loaded, or its engine has ended, which its watcher sees.
// claim is released then.
func (s *Service) followPager(b *box, run *Run, claim *admission.Claim) {
	pager, err := engine.DecodeProcess(run.gen.Pager)
	if err == nil {
		var exited <-chan struct{}
		if exited, err = s.cfg.Engine.Exited(s.ctx, pager); err == nil {
			run.loading = exited
			s.wg.Go(func() {
				defer claim.Release()
				select {
				case <-exited:
					if s.cfg.Engine.Alive(run.proc) {
						s.loaded(run)
					}
				case <-run.changed:
				case <-s.ctx.Done():
				}
			})
		}
	}
	if err != nil {
		claim.Release()
		s.cfg.Log.Error("following a pager", "sandbox", b.id, "error", err)
	}
}

// owed claims the memory that a run which is still being loaded will take.
func (s *Service) owed(ctx context.Context, run *Run) *admission.Claim {
	size := int64(run.gen.MemoryMB) << 20
	if c, err := s.cfg.Meta.CheckpointAnyOrg(ctx, run.gen.Checkpoint); err == nil {
		size = min(size, c.SizeBytes)
	}
	claim := s.cfg.Memory.Owe(size)
	claim.Track(func() int64 { return s.loadedBytes([]engine.Process{run.proc}, size) })
	return claim
}

// settleRows ends the sandboxes whose rows say more than there is.
func (s *Service) settleRows(ctx context.Context) error {
	rows, err := s.cfg.Meta.SandboxesAnyOrg(ctx, meta.SandboxPending)
	if err != nil {
		return err
	}
	for _, sb := range rows {
		if err := s.cfg.Meta.DeleteSandboxRow(ctx, sb.ID); err != nil { // one sandbox must not keep the server from starting
			s.cfg.Log.Error("settling a sandbox", "sandbox", sb.ID, "error", err)
		}
	}
	return s.sweepRunning(ctx)
}

// sweepRunning ends the sandboxes whose rows say that they run and whose engine is
// gone without a word of it to this server. Those with an operation are left to that.
func (s *Service) sweepRunning(ctx context.Context) error {
	rows, err := s.cfg.Meta.SandboxesAnyOrg(ctx, meta.SandboxRunning)
	if err != nil {
		return err
	}
	for _, sb := range rows {
		b := s.box(sb.ID)
		run, gate := b.current()
		if gate != nil || b.operation() != "" || b.whyRecovering() != nil || run != nil && s.cfg.Engine.Alive(run.proc) {
			continue
		}
		if run != nil {
			s.ended(b, run)
			continue
		}
		err := s.Operate(ctx, sb.ID, "end", func(ctx context.Context, op *Operation) error {
			now, err := s.cfg.Meta.SandboxAnyOrg(ctx, sb.ID)
			if err != nil || now.State != meta.SandboxRunning || b.used() { // changed meanwhile
				return err
			}
			return op.end(ctx, meta.SandboxError, "it had no running generation")
		})
		if err != nil {
			s.cfg.Log.Error("settling a sandbox", "sandbox", sb.ID, "error", err)
		}
	}
	return nil
}

// sweep removes what exists on the host, or in the keeper, without a row. A row
// exists before what it accounts for, so what is listed first and has no row
// afterwards is nobody's.
func (s *Service) sweep(ctx context.Context) error {
	found, err := s.cfg.Engine.Leftovers()
	if err != nil {
		return err
	}
	held, err := s.cfg.Keeper.List(ctx)
	if err != nil {
		return err
	}
	gens, err := s.cfg.Meta.Generations(ctx)
	if err != nil {
		return err
	}
	known := func(id string) bool {
		return slices.ContainsFunc(gens, func(g meta.Generation) bool { return g.ID == id })
	}
	var errs []error
	for _, id := range found {
		if !known(id) {
			errs = append(errs, s.cfg.Engine.DestroyGeneration(ctx, id))
		}
	}
	for _, id := range held {
		if !known(id) {
			errs = append(errs, s.cfg.Keeper.Drop(ctx, id))
		}
	}
	for _, g := range gens {
		if g.State == meta.GenerationEnding {
			errs = append(errs, s.discard(ctx, g))
		}
	}
	return errors.Join(errs...)
}

const (
	reconcileEvery = time.Minute
	timeoutsEvery  = time.Second
	// touchEvery is how exact the stored start of a rolling timeout is.
	touchEvery = 10 * time.Second
)

func (s *Service) reconcile() {
	s.every(reconcileEvery, func() {
		if err := s.compare(); err != nil && s.ctx.Err() == nil {
			s.cfg.Log.Error("reconciliation", "error", err)
		}
	})
}

// compare compares the rows with what there is, both ways.
func (s *Service) compare() error {
	s.cfg.Engine.Reap()
	s.pool.age(s.cfg.Now())
	return errors.Join(s.sweepRunning(s.ctx), s.sweep(s.ctx))
}

func (s *Service) every(d time.Duration, f func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f()
		case <-s.ctx.Done():
			return
		}
	}
}

// timeouts expires idle sandboxes and stores when they were last used.
func (s *Service) timeouts() {
	s.every(timeoutsEvery, func() {
		now := s.cfg.Now()
		s.mu.Lock()
		boxes := slices.Collect(maps.Values(s.boxes))
		s.mu.Unlock()
		for _, b := range boxes {
			touch, expired := b.tick(now)
			if !touch.IsZero() {
				if err := s.cfg.Meta.TouchSandbox(s.ctx, b.id, touch); err != nil && s.ctx.Err() == nil {
					s.cfg.Log.Error("storing the last use", "sandbox", b.id, "error", err)
				}
			}
			if expired && s.cfg.Expire != nil {
				s.wg.Go(func() { s.expire(b) })
			}
		}
	})
}

// tick tells whether the last use is to be stored (zero: no) and whether the
// timeout has passed, which it says once.
func (b *box) tick(now time.Time) (touch time.Time, expired bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run == nil {
		return time.Time{}, false
	}
	if b.leases > 0 {
		b.active = now
	}
	if b.active.Sub(b.touched) >= touchEvery {
		b.touched = b.active
		touch = b.active
	}
	if b.timeout > 0 && !b.expiring && now.Sub(b.active) >= b.timeout {
		b.expiring = true
		expired = true
	}
	return touch, expired
}

func (s *Service) expire(b *box) {
	defer func() {
		b.mu.Lock()
		b.expiring = false
		b.mu.Unlock()
	}()
	err := s.Operate(s.ctx, b.id, "expire", func(ctx context.Context, op *Operation) error {
		open := b.closeGate() // what is used from here on would not be saved
		defer open()
		sb, err := s.cfg.Meta.SandboxAnyOrg(ctx, b.id)
		if err != nil || sb.State != meta.SandboxRunning || !b.idle(s.cfg.Now()) {
			return err
		}
		if err := s.cfg.Expire(ctx, op, sb); err != nil {
			return err
		}
		return op.Stop(ctx, "expired")
	})
	if err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Error("expiring; the sandbox runs on for another timeout", "sandbox", b.id, "error", err)
		b.touch(s.cfg.Now())
	}
}

// idle tells whether the timeout has still passed.
func (b *box) idle(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leases == 0 && b.timeout > 0 && now.Sub(b.active) >= b.timeout
}
