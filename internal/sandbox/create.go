// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/killpoint"
	"github.com/opencomputer/oc/internal/meta"
)

// Create makes a sandbox and returns when its agent answers. After a failure
// nothing of it remains.
func (s *Service) Create(ctx context.Context, orgID string, req CreateRequest) (_ meta.Sandbox, err error) {
	sb := meta.Sandbox{
		OrgID: orgID, Name: req.Name, CPUs: req.CPUs, MemoryMB: req.MemoryMB, DiskMB: req.DiskMB,
		TimeoutSec: req.TimeoutSec, Envs: maps.Clone(req.Envs), Metadata: maps.Clone(req.Metadata),
	}
	if err := s.cfg.Limits.complete(&sb); err != nil {
		return meta.Sandbox{}, err
	}
	claim, err := s.cfg.Memory.Claim("a sandbox", perStart)
	if err != nil {
		return meta.Sandbox{}, err
	}
	defer claim.Release() // by then the engine has it
	img, err := s.cfg.Images.Resolve(ctx, orgID, req.Template, req.Progress)
	if err != nil {
		return meta.Sandbox{}, err
	}
	sb.Template = img.Template
	if err := s.insert(ctx, &sb); err != nil {
		return meta.Sandbox{}, err
	}
	killpoint.Here(killpoint.CreateRow)
	run, err := s.startFresh(ctx, sb, img)
	if err == nil {
		err = s.enter(ctx, &sb, run)
	}
	if err != nil {
		return meta.Sandbox{}, errors.Join(err, s.cfg.Meta.DeleteSandboxRow(context.WithoutCancel(ctx), sb.ID))
	}
	killpoint.Here(killpoint.CreateEntered)
	return sb, nil
}

// insert makes the row of a sandbox to come.
func (s *Service) insert(ctx context.Context, sb *meta.Sandbox) error {
	now := s.cfg.Now()
	sb.State, sb.StartedAt, sb.LastActiveAt = meta.SandboxPending, now, now
	return s.cfg.Meta.InsertSandbox(ctx, sb)
}

// startFresh starts the first generation of a sandbox: in an engine process of
// the pool, or where there is none, or it died meanwhile, in a new one.
func (s *Service) startFresh(ctx context.Context, sb meta.Sandbox, img Image) (*Run, error) {
	sd, err := s.takePooled(ctx, sb, img, s.cfg.Engine.Build(), "")
	if err != nil {
		return nil, err
	}
	if sd != nil {
		run, err := s.startIn(ctx, sb, sd)
		if err == nil || ctx.Err() != nil {
			return run, err
		}
		s.cfg.Log.Warn("a prepared engine could not be used", "generation", sd.gen.ID, "error", err)
	}
	if sd, err = s.sowFor(ctx, sb, img, ""); err != nil {
		return nil, err
	}
	return s.startIn(ctx, sb, sd)
}

// startIn starts a seed and greets it. On an error nothing of it remains.
func (s *Service) startIn(ctx context.Context, sb meta.Sandbox, sd *seed) (_ *Run, err error) {
	defer sd.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard(ctx, sd.gen))
		}
	}()
	proc := sd.prepared
	if proc.PID == 0 {
		if proc, err = s.bringUp(ctx, s.cfg.Engine.Start, sd); err != nil {
			return nil, err
		}
	}
	killpoint.Here(killpoint.CreateStarted)
	return s.greet(ctx, sb, sd, proc)
}

// bringUp has the engine start or prepare the process of a seed, which must not take
// for ever: somebody waits for it, or the pool.
func (s *Service) bringUp(ctx context.Context, how func(context.Context, engine.Spec, *os.File) (engine.Process, error), sd *seed) (engine.Process, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.StartTimeout, fmt.Errorf("the engine did not start within %v", s.cfg.StartTimeout))
	defer cancel()
	proc, err := how(ctx, sd.spec, sd.guest)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err == nil {
		sd.started()
	}
	return proc, err
}

// startTimeout is the default of Config.StartTimeout.
const startTimeout = time.Minute

// enter makes a run the first of its sandbox, and the sandbox running. On an
// error the run is gone.
func (s *Service) enter(ctx context.Context, sb *meta.Sandbox, run *Run) error {
	sb.State, sb.GenerationID = meta.SandboxRunning, run.gen.ID
	run.gen.State = meta.GenerationLive
	// In memory first: whoever sees the row running can use the sandbox.
	b := s.box(sb.ID)
	b.setTimeout(sb.TimeoutSec)
	b.touch(s.cfg.Now())
	b.install(run)
	s.rekeep(ctx, run.gen.ID, run.agent)
	err := s.cfg.Meta.InTx(ctx, func(tx *meta.DB) error {
		return errors.Join(tx.UpdateGeneration(ctx, &run.gen), tx.UpdateSandbox(ctx, sb))
	})
	if err != nil {
		b.take()
		s.forget(sb.ID)
		run.retire()
		return errors.Join(err, s.discard(ctx, run.gen))
	}
	s.watch(b, run)
	return nil
}

// Plan checks and inserts the rows of sandboxes to be restored, pending; all
// or none.
func (s *Service) Plan(ctx context.Context, rows []meta.Sandbox) ([]meta.Sandbox, error) {
	for i := range rows {
		err := s.cfg.Limits.complete(&rows[i])
		if err == nil {
			err = s.insert(ctx, &rows[i])
		}
		if err != nil {
			return nil, errors.Join(err, s.Unplan(ctx, rows[:i]))
		}
	}
	return rows, nil
}

// Unplan removes rows of sandboxes that did not come to be.
func (s *Service) Unplan(ctx context.Context, rows []meta.Sandbox) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, sb := range rows {
		now, err := s.cfg.Meta.SandboxAnyOrg(ctx, sb.ID)
		if err == nil && now.State == meta.SandboxPending {
			errs = append(errs, s.cfg.Meta.DeleteSandboxRow(ctx, sb.ID))
		}
	}
	return errors.Join(errs...)
}
