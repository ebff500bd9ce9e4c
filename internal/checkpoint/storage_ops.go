// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"strings"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/store"
	"github.com/opencomputer/oc/internal/store/refs"
)

// Verify reads and checks every byte of a checkpoint. Damage is noted in its row
// as well as returned; and a checkpoint of which none is found any more can be
// used again.
func (s *Service) Verify(ctx context.Context, orgID, id string, progress func(done, total int64)) error {
	c, err := s.whole(ctx, orgID, id)
	if err != nil {
		return err
	}
	img, _, err := s.reachRow(ctx, c)
	if err == nil {
		defer img.Close()
		err = img.Verify(ctx, progress)
	}
	if (err == nil || errors.Is(err, store.ErrNotNeeded)) && c.Status == meta.CheckpointDamaged {
		_, e := s.cfg.Meta.JudgeCheckpoint(ctx, c, meta.CheckpointReady, "")
		return errors.Join(err, e)
	}
	return s.noteDamage(ctx, c, err)
}

// whole gives a checkpoint of the org that has, or had, all of its data.
func (s *Service) whole(ctx context.Context, orgID, id string) (meta.Checkpoint, error) {
	c, err := s.Get(ctx, orgID, id)
	if err == nil && c.Status != meta.CheckpointReady && c.Status != meta.CheckpointDamaged {
		err = fault.New(fault.Invalid, "checkpoint is not ready (status: %s)", c.Status)
	}
	return c, err
}

// noteDamage marks a checkpoint whose bytes were found to be damaged, and gives
// the error on.
func (s *Service) noteDamage(ctx context.Context, c meta.Checkpoint, err error) error {
	if f := fault.As(err); err != nil && f.Kind == fault.Damaged && !strings.Contains(f.Message, c.ID) { // the store cannot tell its name
		err = fault.Wrap(fault.Damaged, err, "checkpoint %s is damaged: its object in the store is", c.ID).WithHint("%s", f.Hint)
	}
	if fault.Is(err, fault.Damaged) && c.Status == meta.CheckpointReady {
		if _, e := s.cfg.Meta.JudgeCheckpoint(context.WithoutCancel(ctx), c, meta.CheckpointDamaged, fault.As(err).Message); e != nil {
			s.cfg.Log.Error("recording a damaged checkpoint", "checkpoint", c.ID, "error", e)
		}
	}
	return err
}

// noteLoss notes damage that a pager came upon after its sandboxes had begun to
// run: in the checkpoint that they were made of or, where that was a capture not
// stored yet, in the one that it is based on.
func (s *Service) noteLoss(ctx context.Context, checkpoint string, why error) {
	if !fault.Is(why, fault.Damaged) {
		return
	}
	ctx = context.WithoutCancel(ctx) // the server may be ending
	c, err := s.cfg.Meta.CheckpointAnyOrg(ctx, checkpoint)
	if err == nil && !strings.Contains(fault.As(why).Message, c.ID) && c.ParentID != "" {
		c, err = s.cfg.Meta.CheckpointAnyOrg(ctx, c.ParentID)
	}
	switch {
	case fault.Is(err, fault.NotFound): // deleted meanwhile
	case err != nil:
		s.cfg.Log.Error("recording a damaged checkpoint", "checkpoint", checkpoint, "error", err)
	default:
		_ = s.noteDamage(ctx, c, why) // the sandbox's end tells it
	}
}

// StoreStats tells how much is stored.
func (s *Service) StoreStats(ctx context.Context) (StoreStats, error) {
	st, err := s.cfg.Store.Stats(ctx)
	return StoreStats(st), err
}

// StoreCheck looks for what is wrong in the store, with readData at every byte,
// and notes in the rows of checkpoints what it finds of them.
func (s *Service) StoreCheck(ctx context.Context, readData bool, progress func(done, total int64)) (StoreReport, error) {
	r, err := s.cfg.Store.Check(ctx, readData, progress)
	if err != nil {
		return StoreReport{}, err
	}
	if err := s.noteReport(ctx, r); err != nil {
		return StoreReport{}, err
	}
	return StoreReport{
		Checkpoints: r.Checkpoints, Packs: r.Packs, Bytes: r.Bytes, Leftovers: r.Leftovers, LeftBytes: r.LeftBytes,
		Problems: storeProblems(r.Problems),
	}, nil
}

func storeProblems(ps []store.Problem) []StoreProblem {
	out := make([]StoreProblem, len(ps))
	for i, p := range ps {
		out[i] = StoreProblem(p)
	}
	return out
}

// noteReport marks the rows of checkpoints that a check found damaged, and unmarks
// those that it has read whole and found sound.
func (s *Service) noteReport(ctx context.Context, r *store.CheckReport) error {
	damaged := r.Damaged()
	rows, err := s.cfg.Meta.CheckpointsAnyOrg(ctx, meta.CheckpointReady, meta.CheckpointDamaged)
	if err != nil {
		return err
	}
	for _, c := range rows {
		what, bad := damaged[c.Object]
		if lost, err := s.lost(ctx, c, r); err != nil {
			return err
		} else if lost {
			what, bad = "its object in the store is missing", true
			r.Problems = append(r.Problems, store.Problem{Checkpoint: c.ID, Object: c.Object, Key: refs.Prefix + c.Object, What: "it is missing"})
		}
		switch {
		case c.Object == "":
		case bad && c.Status == meta.CheckpointReady:
			_, err = s.cfg.Meta.JudgeCheckpoint(ctx, c, meta.CheckpointDamaged, what)
		case !bad && r.Whole[c.Object] && c.Status == meta.CheckpointDamaged:
			_, err = s.cfg.Meta.JudgeCheckpoint(ctx, c, meta.CheckpointReady, "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lost tells whether a checkpoint's object is gone from the store, though nobody
// has deleted the checkpoint.
func (s *Service) lost(ctx context.Context, c meta.Checkpoint, r *store.CheckReport) (bool, error) {
	if c.Object == "" || r.Objects[c.Object] {
		return false, nil
	}
	there, err := s.cfg.Store.Has(ctx, c.Object) // it may be newer than the check
	if err != nil || there {
		return false, err
	}
	now, err := s.cfg.Meta.CheckpointAnyOrg(ctx, c.ID) // or deleted since
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil && (now.Status == meta.CheckpointReady || now.Status == meta.CheckpointDamaged), err
}

// put stores a capture, relying on nothing of what is known to be damaged.
func (s *Service) put(ctx context.Context, req store.PutRequest) (object string, m *store.Manifest, err error) {
	rows, err := s.cfg.Meta.CheckpointsAnyOrg(ctx, meta.CheckpointDamaged)
	if err != nil {
		return "", nil, err
	}
	for _, c := range rows {
		if c.Object != "" {
			req.Distrust = append(req.Distrust, c.Object)
		}
	}
	return s.cfg.Store.Put(ctx, req)
}

// StoreRepair mends what can be mended without a guess.
func (s *Service) StoreRepair(ctx context.Context, progress func(done, total int64)) (StoreRepaired, error) {
	done, err := s.cfg.Store.Repair(ctx, progress)
	if err != nil {
		return StoreRepaired{}, err
	}
	r, err := s.StoreCheck(ctx, true, progress)
	return StoreRepaired{Done: done, Remaining: r.Problems}, err
}

// StoreGC frees what no checkpoint needs, looking at everything there is.
func (s *Service) StoreGC(ctx context.Context, dryRun bool, progress func(done, total int64)) (StoreSwept, error) {
	r, err := s.cfg.Store.Sweep(ctx, refs.Options{DryRun: dryRun, Audit: true, Progress: func(r refs.Report) {
		if progress != nil {
			progress(r.Bytes, r.Total)
		}
	}})
	return StoreSwept{Packs: r.Packs, Bytes: r.Bytes, Checkpoints: r.Removed, Expired: r.Revoked, Unknown: r.Unknown}, err
}

// Convert writes a checkpoint of the first format into the page store, and
// removes its directory. One that is there already is left as it is. progress (may
// be nil) is told of what is stored.
func (s *Service) Convert(ctx context.Context, orgID, id string, progress func(done, total int64)) (meta.Checkpoint, error) {
	c, err := s.whole(ctx, orgID, id)
	if err != nil || c.Object != "" {
		return c, err
	}
	unlock, err := s.locks.lock(ctx, c.ID)
	if err != nil {
		return c, err
	}
	defer unlock()
	if c, err = s.whole(ctx, orgID, id); err != nil || c.Object != "" { // converted meanwhile, or deleted
		return c, err
	}
	img, _, err := s.reach(ctx, artefactOf(c))
	if err != nil {
		return c, s.noteDamage(ctx, c, err)
	}
	defer img.Close()
	object, m, err := s.putAgain(ctx, c, img, progress)
	if err != nil {
		return c, s.noteDamage(ctx, c, err)
	}
	old := artefactOf(c)
	c.Object, c.AddedBytes = object, m.AddedBytes
	if err := s.cfg.Meta.UpdateCheckpoint(ctx, &c); err != nil {
		return c, errors.Join(err, s.discard(context.WithoutCancel(ctx), artefact{object: object}))
	}
	return c, s.discard(ctx, old)
}

// putAgain stores what an opened checkpoint has as a new object.
func (s *Service) putAgain(ctx context.Context, c meta.Checkpoint, img store.Checkpoint, progress func(done, total int64)) (string, *store.Manifest, error) {
	m := *img.Manifest()
	m.Org, m.Name = c.OrgID, c.Name
	req := store.PutRequest{Manifest: m, Capture: store.CaptureOf(img), Progress: progress}
	var ok bool
	if req.EnginePath, ok = s.cfg.Engine.BuildFile(m.Build); !ok {
		return "", nil, fault.New(fault.Invalid, "the oc build %.12s, whose engine wrote checkpoint %s, is not on this machine", m.Build, c.ID)
	}
	var err error
	if req.ImagePath, err = s.cfg.Images.Path(ctx, m.ImageHash); err != nil {
		return "", nil, err
	}
	return s.put(ctx, req)
}
