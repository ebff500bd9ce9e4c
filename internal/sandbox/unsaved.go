// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// Unsaved gives the generations that earlier restores of the sandbox replaced and
// that stay frozen until they are stored.
func (op *Operation) Unsaved(ctx context.Context) ([]meta.Generation, error) {
	return op.s.unsaved(ctx, op.b.id)
}

func (s *Service) unsaved(ctx context.Context, id string) ([]meta.Generation, error) {
	gens, err := s.cfg.Meta.GenerationsOf(ctx, id)
	return slices.DeleteFunc(gens, func(g meta.Generation) bool { return g.State != meta.GenerationSaving }), err
}

// stopReplaced pauses the generations that were replaced and are still to be
// saved, before what replaced them goes on: who froze them lets them go on when
// it has lost its server, and two must not run. A pause on top of another is one
// more: nothing that is still on its way ends it. What cannot be paused is ended.
func (s *Service) stopReplaced(ctx context.Context, gens []meta.Generation) {
	eachOf(gens, func(g meta.Generation) {
		proc, err := engine.DecodeProcess(g.Process)
		if g.State != meta.GenerationSaving || err != nil || !s.cfg.Engine.Alive(proc) {
			return
		}
		if err := bounded(ctx, func(ctx context.Context) error { return s.cfg.Engine.Pause(ctx, proc) }); err != nil {
			s.cfg.Log.Error("a replaced generation cannot be paused, and is ended unsaved", "generation", g.ID, "error", errors.Join(err, s.cfg.Engine.Kill(g.ID)))
		}
	})
}

// keepLater saves a replaced generation, and ends it, in the background: to store
// it may take long, and nobody waits for it. It is all that there is of a state, so
// what fails is tried again, until it is stored or somebody has ended it.
func (s *Service) keepLater(id string, pause time.Duration) {
	s.wg.Go(func() {
		for s.pause(pause) {
			over, err := s.keepOnce(id)
			if err != nil && s.ctx.Err() == nil { // else the next server finds it as this one did
				s.cfg.Log.Error("saving a replaced generation", "generation", id, "again", !over, "error", err)
			}
			if over {
				return
			}
			pause = s.longer(pause)
		}
	})
}

// keepOnce is an attempt to save a replaced generation; over says that there is
// nothing left to save.
func (s *Service) keepOnce(id string) (over bool, err error) {
	g, err := s.cfg.Meta.Generation(s.ctx, id)
	if fault.Is(err, fault.NotFound) || err == nil && g.State != meta.GenerationSaving {
		return true, nil // somebody ended it
	}
	if err != nil {
		return false, err
	}
	sb, err := s.cfg.Meta.SandboxAnyOrg(s.ctx, g.SandboxID)
	if err != nil {
		return false, err
	}
	proc, err := engine.DecodeProcess(g.Process)
	if err == nil && s.cfg.Engine.Alive(proc) {
		if err = s.cfg.Keep(s.ctx, sb, g); err != nil && s.cfg.Engine.Alive(proc) {
			return false, err
		}
	} else {
		err = errors.Join(err, errors.New("its engine ended before it was stored"))
	}
	return true, errors.Join(err, s.discard(s.ctx, g))
}

const (
	// retryPause is the default of Config.RetryPause.
	retryPause = 2 * time.Second
	// retryMost bounds the pauses between attempts.
	retryMost = 5 * time.Minute
)

// longer is the pause after one that was not enough.
func (s *Service) longer(pause time.Duration) time.Duration {
	return min(max(s.cfg.RetryPause, 2*pause), retryMost)
}

// pause waits; it is false when the service ends.
func (s *Service) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return s.ctx.Err() == nil
	case <-s.ctx.Done():
		return false
	}
}
