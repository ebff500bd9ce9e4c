// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"

	"github.com/opencomputer/oc/internal/meta"
)

// Replace puts the one restored run in the place of the sandbox's own. change
// edits the sandbox's row in the same transaction. Until that is committed the
// old run is untouched, and stays the sandbox if anything fails; after it, the
// old one is ended before the new one goes on, so that two never run. Calls
// wait meanwhile.
func (op *Operation) Replace(ctx context.Context, r *Restored, change func(*meta.Sandbox)) error {
	s, run := op.s, r.runs[0]
	if err := r.restoring.Hold(ctx, 0); err != nil {
		return errors.Join(err, r.Discard(ctx))
	}
	open := op.b.closeGate()
	defer open()
	others, err := op.commitReplacement(ctx, run, change)
	if err != nil {
		return errors.Join(err, r.Discard(ctx))
	}
	ctx = context.WithoutCancel(ctx) // the switch has happened
	if old := op.b.install(run); old != nil {
		old.retire()
	}
	op.b.touch(s.cfg.Now())
	for _, g := range others {
		// A gigabyte takes a second to be given back: that comes afterwards.
		err = errors.Join(err, s.cfg.Engine.Kill(g.ID))
	}
	if err == nil {
		err = r.restoring.Resume(ctx, 0)
	}
	if err == nil {
		run.gen.State = meta.GenerationLive
		err = s.cfg.Meta.UpdateGeneration(ctx, &run.gen)
	}
	if err != nil {
		err = errors.Join(err, op.end(ctx, meta.SandboxError, "it could not go on after a restore: "+err.Error()))
	}
	open()
	s.watch(op.b, run)
	r.follow()
	for _, g := range others {
		if err := s.discard(ctx, g); err != nil {
			s.cfg.Log.Error("ending a replaced generation", "generation", g.ID, "error", err)
		}
	}
	return err
}

// commitReplacement makes the run, which is held, the sandbox's generation in
// the metadata, and gives the generations that are to be ended now.
func (op *Operation) commitReplacement(ctx context.Context, run *Run, change func(*meta.Sandbox)) (others []meta.Generation, err error) {
	run.gen.State = meta.GenerationHeld
	err = op.s.cfg.Meta.InTx(ctx, func(tx *meta.DB) error {
		others = nil
		sb, err := tx.SandboxAnyOrg(ctx, op.b.id)
		if err != nil {
			return err
		}
		gens, err := tx.GenerationsOf(ctx, sb.ID)
		if err != nil {
			return err
		}
		for _, g := range gens {
			if g.ID == run.gen.ID {
				continue
			}
			g.State = meta.GenerationEnding
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
