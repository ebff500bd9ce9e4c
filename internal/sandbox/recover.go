// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// recoverTries is how often a recovery may fail, for reasons that are not expected
// to pass, before the sandbox has ended: a keeper that dies meanwhile is replaced
// within a second.
const recoverTries = 3

// recovery is what is done about a generation whose engine runs, and whose agent a
// new server cannot reach.
type recovery struct {
	s        *Service
	b        *box
	gen      meta.Generation
	found    error // why it could not be adopted
	failures int
}

// recoverLater recovers a sandbox in the background: one engine that does not answer
// must not keep the node from serving. Calls to the sandbox wait for an attempt;
// between two they are told why.
func (s *Service) recoverLater(sb meta.Sandbox, g meta.Generation, found error) {
	r := &recovery{s: s, b: s.box(sb.ID), gen: g, found: found}
	r.b.setTimeout(sb.TimeoutSec)
	r.b.recovering(found)
	open := r.b.closeGate()
	s.wg.Go(func() {
		defer r.b.recovering(nil)
		for pause := time.Duration(0); ; open = r.b.closeGate() {
			err := r.inTurn(pause > 0)
			open()
			if err == nil || s.ctx.Err() != nil {
				return
			}
			s.cfg.Log.Warn("a sandbox could not be recovered; trying again", "sandbox", sb.ID, "error", err)
			r.b.recovering(err)
			if pause = s.longer(pause); !s.pause(pause) || r.b.used() { // somebody restored it
				return
			}
		}
	})
}

// inTurn is an attempt in the sandbox's turn.
func (r *recovery) inTurn(again bool) error {
	return r.s.Operate(r.s.ctx, r.b.id, "recover", func(ctx context.Context, op *Operation) error {
		select {
		case r.s.recoveries <- struct{}{}:
			defer func() { <-r.s.recoveries }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return r.attempt(ctx, op, again)
	})
}

// attempt saves what can be saved: the engine is captured without its agent's help
// and restored into a generation with a fresh channel, unless the agent can be
// reached by now. It is nil too when the sandbox has ended, or became another
// generation, or is no longer worth an attempt.
func (r *recovery) attempt(ctx context.Context, op *Operation, again bool) error {
	s := r.s
	sb, err := s.cfg.Meta.SandboxAnyOrg(ctx, r.b.id)
	if err != nil || sb.State != meta.SandboxRunning || sb.GenerationID != r.gen.ID {
		return err
	}
	proc, err := engine.DecodeProcess(r.gen.Process)
	if err != nil {
		return err
	}
	if again {
		if run, err := s.resume(ctx, r.gen); err == nil {
			s.takeUp(ctx, r.b, sb, run)
			return nil
		}
	}
	if s.cfg.Engine.Alive(proc) {
		s.cfg.Log.Warn("recovering a sandbox through a capture", "sandbox", sb.ID, "generation", r.gen.ID, "reason", r.found)
		if err = s.cfg.Recover(ctx, op, sb, r.gen); err == nil {
			return nil
		}
		if s.cfg.Engine.Alive(proc) && r.goesOn(err) {
			return err
		}
	}
	return op.end(ctx, meta.SandboxError, s.mourn(ctx, r.gen, proc, errors.Join(r.found, err)).Error())
}

// goesOn tells whether it is tried again after a failure. The engine is all that
// there is of the sandbox: what only has no memory, space or store for now does not
// end it, nor that a copy of an agent that is silent is silent too.
func (r *recovery) goesOn(err error) bool {
	if fault.Is(err, fault.Unavailable) || errors.Is(r.found, errSilent) || r.s.ctx.Err() != nil {
		return true
	}
	r.failures++
	return r.failures < recoverTries
}
