// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/killpoint"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/store"
)

const (
	// readyWait is how long a restore or spawn waits for a checkpoint that is
	// still being made.
	readyWait = 30 * time.Second
	readyPoll = 50 * time.Millisecond
	// MaxSpawn is how many sandboxes one spawn may make.
	MaxSpawn = 100
)

// ready gives a checkpoint of the org that can be used, waiting for one that
// is being made.
func (s *Service) ready(ctx context.Context, orgID, id string) (meta.Checkpoint, error) {
	deadline := time.Now().Add(readyWait)
	for {
		c, err := s.Get(ctx, orgID, id)
		if err != nil || c.Status == meta.CheckpointReady {
			return c, err
		}
		if c.Status == meta.CheckpointDamaged {
			return c, fault.New(fault.Damaged, "checkpoint %s is damaged: %s", id, strings.TrimPrefix(c.ErrorMsg, "checkpoint "+id+" is damaged: ")).
				WithHint("oc checkpoint list %s shows others; oc store check says what is wrong", c.SandboxID)
		}
		if c.Status != meta.CheckpointProcessing || time.Now().After(deadline) {
			f := fault.New(fault.Invalid, "checkpoint is not ready (status: %s)", c.Status)
			if c.ErrorMsg != "" {
				f = f.WithHint("it failed: %s", c.ErrorMsg)
			}
			return c, f
		}
		select {
		case <-time.After(readyPoll):
		case <-ctx.Done():
			return c, ctx.Err()
		}
	}
}

// open checks that a checkpoint can run here and opens its artefact. The
// artefact cannot be deleted until release is called. progress, unless nil, is told
// of what has to be fetched for that.
func (s *Service) open(ctx context.Context, c meta.Checkpoint, progress func(done, total int64)) (img store.Checkpoint, src sandbox.Source, release func(), err error) {
	unlock, err := s.locks.rlock(ctx, c.ID)
	if err != nil {
		return nil, src, nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	img, place, err := s.reachRow(ctx, c)
	err = s.noteDamage(ctx, c, err)
	if err != nil {
		return nil, src, nil, err
	}
	path, err := s.rests(ctx, img, progress)
	if err != nil {
		img.Close()
		return nil, src, nil, err
	}
	m := img.Manifest()
	src = sandbox.Source{
		Checkpoint: c.ID, Artefact: engine.Source{Location: place, Build: m.Build, Engine: m.Requirements.Engine},
		Image:  sandbox.Image{Template: c.Template, TreeHash: m.TreeHash, Hash: m.ImageHash, Path: path},
		Memory: loads(img.File(store.FileState).Size(), img.Ranges()),
	}
	return img, src, func() { img.Close(); unlock() }, nil
}

// Restore puts a sandbox back to a checkpoint of its org: its own or another
// sandbox's. Everything is verified, and the replacement is up and probed,
// before the running generation is touched; after an error it runs on as
// before. What it replaces is not kept: see RestoreSaving.
func (s *Service) Restore(ctx context.Context, orgID, sandboxID, id string) error {
	return s.restore(ctx, orgID, sandboxID, id, nil)
}

// restore is Restore; saver, unless nil, keeps what is replaced.
func (s *Service) restore(ctx context.Context, orgID, sandboxID, id string, saver *saver) error {
	sb, err := s.cfg.Sandboxes.Get(ctx, orgID, sandboxID)
	if err != nil {
		return err
	}
	if sb.State == meta.SandboxStopped {
		return fault.New(fault.Invalid, "sandbox must be running to restore a checkpoint; %s is stopped", sandboxID).
			WithHint("oc checkpoint spawn %s makes a new sandbox of it", id)
	}
	c, err := s.ready(ctx, orgID, id)
	if err != nil {
		return err
	}
	img, src, release, err := s.openToRestore(ctx, c, nil)
	if err != nil {
		return err
	}
	defer release()
	verified := make(chan error, 1) // beside the bringing up of the replacement
	verifyCtx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		for range verified { // until it has ended
		}
	}()
	go func() {
		defer close(verified)
		verified <- s.noteDamage(ctx, c, img.Usable(verifyCtx))
	}()
	return s.cfg.Sandboxes.Operate(ctx, sandboxID, "restore", func(ctx context.Context, op *sandbox.Operation) error {
		sb, err := s.cfg.Sandboxes.Get(ctx, orgID, sandboxID)
		if err != nil {
			return err
		}
		if sb.State == meta.SandboxStopped { // killed while this waited
			return fault.New(fault.Gone, "sandbox %s has been stopped", sandboxID)
		}
		if saver != nil {
			if err := saver.reserve(ctx, op, sb); err != nil {
				return err
			}
			defer saver.giveBack()
		}
		sb.CPUs, sb.DiskMB, sb.MemoryMB = c.CPUs, c.DiskMB, max(sb.MemoryMB, c.MemoryMB)
		restored, err := s.cfg.Sandboxes.Restore(ctx, src, []meta.Sandbox{sb})
		if err != nil {
			return s.noteDamage(ctx, c, err)
		}
		if err := <-verified; err != nil { // all of it, before anything is touched
			return errors.Join(err, restored.Discard(ctx))
		}
		killpoint.Here(killpoint.RestoreRestored)
		return op.Replace(ctx, restored, func(row *meta.Sandbox) {
			row.CPUs, row.DiskMB, row.MemoryMB, row.Template = sb.CPUs, sb.DiskMB, sb.MemoryMB, c.Template
			row.LastCheckpoint = c.ID // what its next checkpoint descends from
		}, saver.saves(sb))
	})
}

// Spawn makes sandboxes of a checkpoint. They are all running when it returns;
// after an error there are none.
func (s *Service) Spawn(ctx context.Context, orgID, id string, req SpawnRequest) ([]meta.Sandbox, error) {
	if err := req.complete(); err != nil {
		return nil, err
	}
	c, err := s.ready(ctx, orgID, id)
	if err != nil {
		return nil, err
	}
	_, src, release, err := s.openToRestore(ctx, c, req.Progress)
	if err != nil {
		return nil, err
	}
	defer release()
	made, _, err := s.spawn(ctx, c, src, req)
	return made, err
}

// spawn makes sandboxes of what the source has of a checkpoint; loaded is closed
// when they need it no more.
func (s *Service) spawn(ctx context.Context, c meta.Checkpoint, src sandbox.Source, req SpawnRequest) (_ []meta.Sandbox, loaded <-chan struct{}, err error) {
	from, err := s.cfg.Meta.SandboxAnyOrg(ctx, c.SandboxID)
	if err != nil {
		return nil, nil, err
	}
	rows, err := s.cfg.Sandboxes.Plan(ctx, planned(c.OrgID, c, from.Metadata, req))
	if err != nil {
		return nil, nil, err
	}
	killpoint.Here(killpoint.SpawnPlanned)
	restored, err := s.cfg.Sandboxes.Restore(ctx, src, rows)
	if err != nil {
		return nil, nil, errors.Join(s.noteDamage(ctx, c, err), s.cfg.Sandboxes.Unplan(ctx, rows))
	}
	killpoint.Here(killpoint.SpawnRestored)
	entered, err := restored.Enter(ctx, rows)
	if err != nil {
		for _, sb := range entered {
			err = errors.Join(err, s.cfg.Sandboxes.Kill(context.WithoutCancel(ctx), c.OrgID, sb.ID))
		}
		return nil, nil, errors.Join(err, s.cfg.Sandboxes.Unplan(ctx, rows))
	}
	killpoint.Here(killpoint.SpawnEntered)
	return rows, restored.Loaded(), nil
}

// complete fills in the default count and checks it.
func (r *SpawnRequest) complete() error {
	if r.Count == 0 {
		r.Count = 1
	}
	if r.Count < 1 || r.Count > MaxSpawn {
		return fault.New(fault.Invalid, "count is %d; it must be from 1 to %d", r.Count, MaxSpawn)
	}
	return nil
}

// over lays one map over another.
func over(base, top map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, base)
	maps.Copy(out, top)
	return out
}

// planned are the rows of a spawn, not yet inserted. The request's entries win
// over the checkpoint's environment and its sandbox's metadata.
func planned(orgID string, c meta.Checkpoint, metadata map[string]string, req SpawnRequest) []meta.Sandbox {
	rows := make([]meta.Sandbox, req.Count)
	for i := range rows {
		name := req.Name
		if name != "" && req.Count > 1 {
			name = fmt.Sprintf("%s-%d", name, i+1)
		}
		rows[i] = meta.Sandbox{
			OrgID: orgID, Name: name, Template: c.Template, FromCheckpoint: c.ID, LastCheckpoint: c.ID,
			CPUs: c.CPUs, MemoryMB: max(c.MemoryMB, req.MemoryMB), DiskMB: c.DiskMB,
			TimeoutSec: req.TimeoutSec, Envs: over(c.Envs, req.Envs), Metadata: over(metadata, req.Metadata),
		}
	}
	return rows
}
