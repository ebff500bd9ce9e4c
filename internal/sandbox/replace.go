// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/killpoint"
	"github.com/opencomputer/oc/internal/meta"
)

// Replaced is the generation that a restore in place replaces.
type Replaced struct {
	Generation meta.Generation
	Process    engine.Process
	Agent      *agentclient.Client // nil where it cannot be reached
	Well       bool                // its agent answers
	Loading    <-chan struct{}     // closed when it has loaded all of its memory; nil: it has
}

// Save takes the state of a generation that is being replaced, and leaves it
// frozen; after an error it is not. Until it has called freezes, just before it
// freezes it, the generation serves calls. store makes it durable, beside the running
// replacement; where it fails the generation stays frozen, and Config.Keep is asked
// later.
type Save func(ctx context.Context, old Replaced, freezes func() error) (held engine.Held, store func(ctx context.Context) error, err error)

// Replaces gives the generation that a restore in place would replace, nil if
// there is none whose engine runs.
func (op *Operation) Replaces(ctx context.Context) (*Replaced, error) {
	gens, err := op.s.cfg.Meta.GenerationsOf(ctx, op.b.id)
	if err != nil {
		return nil, err
	}
	run, _ := op.b.current()
	for _, g := range gens {
		p, err := engine.DecodeProcess(g.Process)
		if g.State != meta.GenerationLive && g.State != meta.GenerationFreezing || err != nil || !op.s.cfg.Engine.Alive(p) {
			continue
		}
		old := &Replaced{Generation: g, Process: p}
		if run != nil && run.gen.ID == g.ID {
			old.Agent, old.Loading = run.agent, run.loading
		}
		return old, nil
	}
	return nil, nil
}

// Replace puts the one restored run in the place of the sandbox's own. change
// edits the sandbox's row in the same transaction. Until that is committed the
// old run is only frozen, and goes on as the sandbox if anything fails; after
// it, the old one never runs again, so that two never run. Calls wait from the
// freeze, or where nothing is saved from just before the commit, until then. With
// save, which may be nil, what the old run did until it was frozen is kept: nothing
// acknowledged falls between the two.
func (op *Operation) Replace(ctx context.Context, r *Restored, change func(*meta.Sandbox), save Save) error {
	s, run := op.s, r.runs[0]
	if err := bounded(ctx, func(ctx context.Context) error { return r.restoring.Hold(ctx, 0) }); err != nil {
		return errors.Join(err, r.Discard(ctx))
	}
	killpoint.Here(killpoint.RestoreHeld)
	gate := sync.OnceValue(op.b.closeGate) // which opens it again
	open := func() { gate()() }
	defer open()
	held, store, err := op.save(ctx, save, func() error { gate(); return nil })
	if err != nil {
		open() // the old run goes on
		return errors.Join(err, r.Discard(ctx))
	}
	gate()
	killpoint.Here(killpoint.RestoreFrozen)
	others, err := op.commitReplacement(ctx, run, change, held != nil)
	if err != nil {
		if held != nil {
			err = errors.Join(err, op.thaw(ctx, held))
		}
		open()
		return errors.Join(err, r.Discard(ctx))
	}
	killpoint.Here(killpoint.RestoreCommitted)
	err = op.switchTo(context.WithoutCancel(ctx), r, others, held)
	open()
	if store != nil {
		if e := store(context.WithoutCancel(ctx)); e != nil {
			others = s.keepFrozen(others, e)
		}
	}
	killpoint.Here(killpoint.RestoreSaved)
	s.wg.Go(func() { // giving a gigabyte back takes a second
		for _, g := range others { // as their rows are: one that cannot be ended now is noted
			if e := s.discard(ctx, g); e != nil {
				s.cfg.Log.Error("ending a replaced generation", "generation", g.ID, "error", e)
			}
		}
	})
	return err
}

// keepFrozen has the replaced generation whose state could not be stored be saved
// later, and gives the others.
func (s *Service) keepFrozen(replaced []meta.Generation, why error) (others []meta.Generation) {
	for _, g := range replaced {
		if g.State != meta.GenerationSaving || s.cfg.Keep == nil {
			others = append(others, g)
			continue
		}
		s.cfg.Log.Error("what a restore replaced could not be stored; it stays frozen, and that is tried again",
			"sandbox", g.SandboxID, "generation", g.ID, "error", why)
		s.keepLater(g.ID, s.cfg.RetryPause)
	}
	return others
}

// save freezes and saves what is being replaced, if that is wanted and there
// is anything.
func (op *Operation) save(ctx context.Context, save Save, freezes func() error) (engine.Held, func(context.Context) error, error) {
	if save == nil {
		return nil, nil, nil
	}
	old, err := op.Replaces(ctx)
	if err != nil || old == nil {
		return nil, nil, err
	}
	old.Well = well(ctx, old.Agent)
	// Until it is thawed the row says that it may be frozen. Who froze it lets it go
	// on when this server is gone, or the watchdog does: the next one must not.
	old.Generation.State = meta.GenerationFreezing
	if err := op.s.cfg.Meta.UpdateGeneration(ctx, &old.Generation); err != nil {
		return nil, nil, err
	}
	held, store, err := save(ctx, *old, freezes)
	switch {
	case err == nil:
		return held, store, nil
	case op.s.ends(ctx, old.Process): // of what ails it: there is nothing any more that a restore could lose
		op.s.cfg.Log.Warn("a sandbox's engine ended when its state was to be saved", "sandbox", op.b.id, "error", err)
		return nil, nil, nil
	}
	// Who was to freeze it knows whether it had, and has let it go on: to do that to
	// an engine that is not frozen would end it.
	old.Generation.State = meta.GenerationLive
	return nil, nil, errors.Join(err, op.s.cfg.Meta.UpdateGeneration(context.WithoutCancel(ctx), &old.Generation))
}

// ends tells whether an engine has ended, or is about to: its connections go first.
func (s *Service) ends(ctx context.Context, p engine.Process) bool {
	const dying = time.Second
	ctx, cancel := context.WithTimeout(ctx, dying)
	defer cancel()
	exited, err := s.cfg.Engine.Exited(ctx, p)
	if err != nil {
		return !s.cfg.Engine.Alive(p)
	}
	select {
	case <-exited:
		return true
	case <-ctx.Done():
		return false
	}
}

// thaw lets a frozen generation go on as the sandbox's own: nothing took its
// place.
func (op *Operation) thaw(ctx context.Context, held engine.Held) error {
	ctx = context.WithoutCancel(ctx)
	if err := held.Thaw(ctx); err != nil {
		return err
	}
	gens, err := op.s.cfg.Meta.GenerationsOf(ctx, op.b.id)
	for _, g := range gens {
		if g.State == meta.GenerationFreezing {
			g.State = meta.GenerationLive
			err = errors.Join(err, op.s.cfg.Meta.UpdateGeneration(ctx, &g))
		}
	}
	return err
}

// wellTimeout is how long an agent may take to answer before its sandbox is saved
// without it.
const wellTimeout = 2 * time.Second

// well tells whether an agent answers.
func well(ctx context.Context, agent *agentclient.Client) bool {
	if agent == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, wellTimeout)
	defer cancel()
	_, err := agent.Sessions(ctx)
	return err == nil
}

// switchTo ends what was replaced and lets the replacement, which is the
// sandbox by now, go on. A saved generation stays frozen.
func (op *Operation) switchTo(ctx context.Context, r *Restored, others []meta.Generation, held engine.Held) error {
	s, run := op.s, r.runs[0]
	if old := op.b.install(run); old != nil {
		old.retire()
	}
	op.b.touch(s.cfg.Now())
	var err error
	if held != nil {
		err = held.Keep(ctx)
	}
	if held == nil || err != nil { // not known to be frozen: it must not run beside the new one
		if err != nil {
			s.cfg.Log.Warn("a saved generation could not be kept frozen and is ended", "sandbox", op.b.id, "error", err)
		}
		err = nil
		for _, g := range others {
			// A gigabyte takes a second to be given back: that comes afterwards.
			err = errors.Join(err, s.cfg.Engine.Kill(g.ID))
		}
	}
	killpoint.Here(killpoint.RestoreKept)
	if err == nil {
		err = bounded(ctx, func(ctx context.Context) error { return r.restoring.Resume(ctx, 0) })
	}
	killpoint.Here(killpoint.RestoreResumed)
	if err == nil {
		run.gen.State = meta.GenerationLive
		err = s.cfg.Meta.UpdateGeneration(ctx, &run.gen)
	}
	if err != nil {
		err = errors.Join(err, op.end(ctx, meta.SandboxError, "it could not go on after a restore: "+err.Error()))
	}
	s.watch(op.b, run)
	s.rekeep(ctx, run.gen.ID, run.agent)
	r.follow()
	return err
}

// commitReplacement makes the run, which is held, the sandbox's generation in
// the metadata, and gives the generations that it replaces.
func (op *Operation) commitReplacement(ctx context.Context, run *Run, change func(*meta.Sandbox), saving bool) (others []meta.Generation, err error) {
	run.gen.State = meta.GenerationHeld
	err = op.s.cfg.Meta.InTx(ctx, func(tx *meta.DB) error {
		others = nil
		sb, err := tx.SandboxAnyOrg(ctx, op.b.id)
		if err != nil {
			return err
		}
		if sb.State == meta.SandboxStopped {
			return fault.New(fault.Gone, "sandbox %s has been stopped", sb.ID)
		}
		gens, err := tx.GenerationsOf(ctx, sb.ID)
		if err != nil {
			return err
		}
		for _, g := range gens {
			if g.ID == run.gen.ID || g.State == meta.GenerationSaving { // that is what an earlier restore replaced: keepLater's
				continue
			}
			if saving && g.State == meta.GenerationFreezing {
				g.State = meta.GenerationSaving
			} else {
				g.State = meta.GenerationEnding
			}
			if err := tx.UpdateGeneration(ctx, &g); err != nil {
				return err
			}
			others = append(others, g)
		}
		change(&sb)
		sb.State, sb.Reason, sb.StoppedAt, sb.GenerationID = meta.SandboxRunning, "", nil, run.gen.ID
		return errors.Join(tx.UpdateGeneration(ctx, &run.gen), tx.UpdateSandbox(ctx, &sb))
	})
	return others, err
}

// HoldLimit is how long a generation may stay frozen for its replacement; then
// it thaws by itself.
const HoldLimit = 2 * time.Minute

// callTimeout bounds a short call to an engine.
const callTimeout = 30 * time.Second

func bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}
