// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"time"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/killpoint"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/store"
)

const (
	// preflightTimeout bounds how long an agent may take to show that the
	// sandbox is well.
	preflightTimeout = 10 * time.Second
	// spaceMargin is what must stay free on the data disk, in bytes.
	spaceMargin = 64 << 20
)

// make captures and stores the checkpoint of a processing row, in the sandbox's turn,
// and settles the row. A kill ends it as long as there is no capture. What is captured
// is stored all the same: others may have been told of it, and it needs nothing of the
// sandbox any more. made hears of the capture before it is stored; its context ends
// with the turn.
func (s *Service) make(ctx context.Context, c *meta.Checkpoint, made func(context.Context, *frozen)) error {
	stored := make(chan struct{})
	var kept error
	err := s.cfg.Sandboxes.Operate(ctx, c.SandboxID, "checkpoint", func(turn context.Context, op *sandbox.Operation) error {
		capt, err := s.capture(turn, op, c)
		if err != nil {
			return err
		}
		made(turn, capt)
		go func() {
			defer close(stored)
			defer capt.close()
			kept = s.keep(ctx, capt, c, true)
		}()
		select {
		case <-stored:
		case <-turn.Done():
		}
		return nil
	})
	if err == nil {
		<-stored
		err = kept
	}
	if err != nil {
		s.fail(ctx, c, err)
		err = explain(err, "the checkpoint of sandbox %s failed", c.SandboxID)
	}
	return err
}

// capture captures the sandbox's run for c's row.
func (s *Service) capture(ctx context.Context, op *sandbox.Operation, c *meta.Checkpoint) (*frozen, error) {
	run, err := op.Run()
	if err != nil {
		return nil, err
	}
	sb, err := s.cfg.Meta.SandboxAnyOrg(ctx, c.SandboxID)
	if err != nil {
		return nil, err
	}
	c.ParentID = sb.LastCheckpoint
	gen, err := s.cfg.Meta.Generation(ctx, run.Generation().ID)
	if err != nil {
		return nil, err
	}
	p := s.openParent(ctx, c.ParentID)
	defer p.close()
	s.hurry(gen)
	ctx, well, stop := s.looking(ctx, run, c.ParentID)
	defer stop()
	capt, err := s.freeze(ctx, run.Process(), gen, p, well)
	if err != nil {
		return nil, err
	}
	killpoint.Here(killpoint.CheckpointCaptured)
	return capt, nil
}

// keep stores a capture and marks its row ready. head tells whether the
// sandbox's state descends from it; else it is of what a restore replaced, of which
// nothing is needed any more in that instant.
func (s *Service) keep(ctx context.Context, capt *frozen, c *meta.Checkpoint, head bool) error {
	proc, gen := capt.proc, capt.gen
	img, err := s.cfg.Meta.Image(ctx, gen.ImageHash)
	if err != nil {
		return err
	}
	c.ImageHash, c.TreeHash, c.Build = img.Hash, img.TreeHash, proc.Build
	c.CPUs, c.MemoryMB, c.DiskMB = gen.CPUs, gen.MemoryMB, gen.DiskMB
	need := s.cfg.Engine.Requirements()
	need.Engine = proc.Engine // of the build that wrote it, which may be an earlier one
	req := store.PutRequest{
		Manifest: store.Manifest{
			Checkpoint: c.ID, Org: c.OrgID, Sandbox: c.SandboxID, Name: c.Name, Parent: c.ParentID, CreatedAt: c.CreatedAt.UTC(),
			Requirements: need, Build: c.Build, ImageHash: c.ImageHash, TreeHash: c.TreeHash,
			Agent: wire.Version,
			Shape: engine.Shape{CPUs: c.CPUs, MemoryBytes: int64(c.MemoryMB) << 20, DiskBytes: int64(c.DiskMB) << 20},
		},
		Capture: capt.Capture, Base: capt.base, Progress: capt.progress,
	}
	if req.ImagePath, err = s.cfg.Images.Path(ctx, img.Hash); err != nil {
		return err
	}
	req.EnginePath, _ = s.cfg.Engine.BuildFile(proc.Build) // there: what an engine ever ran from is kept
	object, m, err := s.put(ctx, req)
	if err != nil {
		return err
	}
	killpoint.Here(killpoint.CheckpointStored)
	now := time.Now()
	c.Status, c.ReadyAt, c.SizeBytes, c.AddedBytes, c.Object = meta.CheckpointReady, &now, m.SizeBytes, m.AddedBytes, object
	err = s.cfg.Meta.InTx(ctx, func(tx *meta.DB) error {
		if err := tx.UpdateCheckpoint(ctx, c); err != nil {
			return err
		}
		if !head { // the sandbox's row is whoever's has its turn
			return endSaved(ctx, tx, gen.ID)
		}
		sb, err := tx.SandboxAnyOrg(ctx, c.SandboxID)
		if err != nil {
			return err
		}
		sb.LastCheckpoint = c.ID
		return tx.UpdateSandbox(ctx, &sb)
	})
	if err != nil {
		c.Object = ""
		return errors.Join(err, s.discard(context.WithoutCancel(ctx), artefact{object: object}))
	}
	killpoint.Here(killpoint.CheckpointReady)
	s.cfg.Log.Info("checkpoint ready", "checkpoint", c.ID, "sandbox", c.SandboxID,
		"bytes", c.SizeBytes, "copied", capt.CopiedBytes(), "pause", capt.Pause)
	return nil
}

// endSaved notes that a replaced generation is stored, so that it is not saved a
// second time by who finds it.
func endSaved(ctx context.Context, tx *meta.DB, id string) error {
	gen, err := tx.Generation(ctx, id)
	if fault.Is(err, fault.NotFound) { // killed meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	gen.State = meta.GenerationEnding
	return tx.UpdateGeneration(ctx, &gen)
}

// looking is preflight beside what else precedes the freeze, which it breaks off by
// the context that it gives. well waits for it, and so does stop.
func (s *Service) looking(ctx context.Context, run *sandbox.Run, parent string) (_ context.Context, well func() error, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	looked := make(chan struct{})
	var sick error
	go func() {
		defer close(looked)
		if sick = s.preflight(ctx, run, parent); sick != nil {
			cancel(sick)
		}
	}()
	well = func() error {
		<-looked
		return sick
	}
	return ctx, well, func() {
		cancel(nil)
		<-looked
	}
}

// preflight refuses to capture a sandbox that is not well, or without room for
// the result, and says which.
func (s *Service) preflight(ctx context.Context, run *sandbox.Run, parent string) error {
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	if _, err := run.Agent().Sessions(ctx); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the sandbox's agent does not answer; no checkpoint was made").
			WithHint("the sandbox runs on; see whether it is out of memory or processes")
	}
	return s.roomFor(ctx, run.Process(), parent)
}

// roomFor refuses a capture whose result the store has no room for; of one that
// has a parent as much is expected as that brought.
func (s *Service) roomFor(ctx context.Context, p engine.Process, parent string) error {
	mem, disk := s.cfg.Engine.Usage(p)
	need := mem + disk
	if c, err := s.cfg.Meta.CheckpointAnyOrg(ctx, parent); err == nil && c.Status == meta.CheckpointReady && c.Object != "" {
		need = min(need, 2*c.AddedBytes)
	}
	return s.room(need)
}

// room refuses a checkpoint of so many bytes where the store has no room for it.
func (s *Service) room(need int64) error {
	free, known, err := s.cfg.Store.Free()
	if err != nil || !known {
		return err
	}
	if need += spaceMargin; free < need {
		return fault.New(fault.Unavailable, "no space for the checkpoint: up to %d MB are needed, %d MB are free on the disk of the store", need>>20, free>>20).
			WithHint("free some space, for instance by deleting checkpoints, and try again")
	}
	return nil
}

// hurry has a generation that is still loading load at full rate: the capture
// waits for it.
func (s *Service) hurry(gen meta.Generation) {
	if len(gen.Pager) == 0 {
		return
	}
	if pager, err := engine.DecodeProcess(gen.Pager); err == nil {
		s.cfg.Engine.Hurry(pager)
	}
}

// expire saves a sandbox that nobody used for its timeout.
func (s *Service) expire(ctx context.Context, op *sandbox.Operation, sb meta.Sandbox) error {
	c := meta.Checkpoint{OrgID: sb.OrgID, SandboxID: sb.ID, Name: automaticName("expired"), Kind: kindFull, Automatic: true}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return err
	}
	capt, err := s.capture(ctx, op, &c)
	if err == nil {
		defer capt.close()
		err = s.keep(ctx, capt, &c, true)
	}
	if err != nil {
		s.fail(ctx, &c, err)
	}
	return err
}
