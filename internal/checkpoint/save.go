// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

const (
	// savedPrefix begins the names of checkpoints of what a restore replaced.
	savedPrefix = "before-restore"
	// recoveredPrefix begins those of what had lost its agent's channel.
	recoveredPrefix = "recovered"
	// automaticKept is how many of either a sandbox keeps.
	automaticKept = 3
)

// Saved is what became of the state that a restore replaced.
type Saved struct {
	Checkpoint *meta.Checkpoint // nil where nothing was saved
	Note       string           // why not, or what is special about it
}

// RestoreSaving is Restore, but keeps what it replaces as an automatic
// checkpoint, so that the restore can be undone. It works on a sandbox that is
// not well: the checkpoint is then taken without its agent, and marked
// unverified.
func (s *Service) RestoreSaving(ctx context.Context, orgID, sandboxID, id string) (Saved, error) {
	v := &saver{s: s, saved: Saved{Note: "there was nothing to save: the sandbox's engine had ended"}}
	err := s.restore(ctx, orgID, sandboxID, id, v)
	return v.saved, err
}

// saver saves the state that one restore replaces.
type saver struct {
	s     *Service
	saved Saved
	room  room // until save has it
}

// reserve waits for the room that the capture takes, before anything waits for
// the restore.
func (v *saver) reserve(ctx context.Context, op *sandbox.Operation) error {
	old, err := op.Replaces(ctx)
	if err == nil && old != nil {
		v.room, err = v.s.reserve(ctx, old.Process, old.Generation)
	}
	return err
}

// giveBack gives back room that was not used.
func (v *saver) giveBack() { v.room.giveBack() }

// saves gives the sandbox.Save for a sandbox; nil for a nil saver.
func (v *saver) saves(sb meta.Sandbox) sandbox.Save {
	if v == nil {
		return nil
	}
	return func(ctx context.Context, old sandbox.Replaced) (engine.Held, func(context.Context) error, error) {
		return v.save(ctx, sb, old)
	}
}

func (v *saver) save(ctx context.Context, sb meta.Sandbox, old sandbox.Replaced) (engine.Held, func(context.Context) error, error) {
	s := v.s
	if err := s.roomFor(ctx, old.Process, sb.LastCheckpoint); err != nil {
		return nil, nil, fault.As(err).WithHint("free some space, or restore with --no-save and lose the present state")
	}
	c := meta.Checkpoint{
		OrgID: sb.OrgID, SandboxID: sb.ID, Name: automaticName(savedPrefix), Kind: kindFull, Automatic: true,
		ParentID: sb.LastCheckpoint, Unverified: !old.Well,
	}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return nil, nil, err
	}
	s.hurry(old.Generation)
	r := v.room
	v.room = room{} // the capture's from here on
	capt, held, err := s.freezeHeld(ctx, old.Process, old.Generation, c.ParentID, r, sandbox.HoldLimit)
	if err != nil {
		s.failSaved(ctx, &c, err)
		return nil, nil, fault.Wrap(fault.Unavailable, err, "the present state of sandbox %s cannot be saved: %s", sb.ID, reason(err)).
			WithHint("restore with --no-save to lose it")
	}
	store := func(ctx context.Context) error {
		defer capt.close()
		err := s.keep(ctx, old.Process, old.Generation, capt, &c, false)
		v.saved = Saved{Checkpoint: &c}
		switch {
		case err != nil:
			s.failSaved(ctx, &c, err)
			v.saved.Note = fmt.Sprintf("the state before the restore could not be stored: %s", reason(err))
			return nil // the restore itself has happened
		case c.Unverified:
			v.saved.Note = "the sandbox's agent did not answer: its state was saved unverified"
		}
		// Not in the restore: what it restores from cannot be deleted before its end,
		// and may be what has to go.
		s.wg.Go(func() { s.trimSaved(ctx, c) })
		return nil
	}
	return thawing{held, func() {
		capt.close()
		s.failSaved(ctx, &c, errors.New("the restore that it was made for did not take place"))
	}}, store, nil
}

// thawing is a hold that says when it ends in vain: what replaced the generation
// is given up, and so is what was saved of it.
type thawing struct {
	engine.Held
	inVain func()
}

// Thaw implements engine.Held.
func (t thawing) Thaw(ctx context.Context) error {
	err := t.Held.Thaw(ctx)
	t.inVain()
	return err
}

// failSaved fails a state that was to be saved, in the place of an older one that did.
func (s *Service) failSaved(ctx context.Context, c *meta.Checkpoint, err error) {
	s.fail(ctx, c, err)
	row := *c
	s.wg.Go(func() { s.trimSaved(s.ctx, row) })
}

// trimSaved deletes the sandbox's saved states beyond the newest.
func (s *Service) trimSaved(ctx context.Context, c meta.Checkpoint) {
	s.trimAutomatic(ctx, c, savedPrefix, nil)
}

// trimRecovered is trimSaved for what was recovered, which no restore that is
// asked for takes the place of: one that somebody uses stays until a later trim.
func (s *Service) trimRecovered(ctx context.Context, c meta.Checkpoint) {
	used, err := s.restedOn(ctx)
	if err != nil {
		s.cfg.Log.Error("trimming automatic checkpoints", "sandbox", c.SandboxID, "error", err)
		return
	}
	s.trimAutomatic(ctx, c, recoveredPrefix, func(id string) bool { return used[id] || s.locks.held(id) })
}

// restedOn gives the checkpoints that a running sandbox descends from, or that a
// generation loads or has loaded from.
func (s *Service) restedOn(ctx context.Context) (map[string]bool, error) {
	ids := map[string]bool{}
	gens, err := s.cfg.Meta.Generations(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range gens {
		ids[g.Checkpoint] = true
	}
	sandboxes, err := s.cfg.Meta.SandboxesAnyOrg(ctx, meta.SandboxRunning)
	for _, sb := range sandboxes {
		ids[sb.LastCheckpoint] = true
	}
	return ids, err
}

// trimAutomatic deletes the sandbox's automatic checkpoints of the prefix that are
// older than the newest automaticKept which can be restored, but not those that
// spare, unless nil, is true for. One that failed takes no good one's place, and of
// those no more are kept.
func (s *Service) trimAutomatic(ctx context.Context, c meta.Checkpoint, prefix string, spare func(id string) bool) {
	rows, err := s.cfg.Meta.Checkpoints(ctx, c.OrgID, c.SandboxID)
	if err != nil {
		s.cfg.Log.Error("trimming automatic checkpoints", "sandbox", c.SandboxID, "error", err)
		return
	}
	rows = slices.DeleteFunc(rows, func(r meta.Checkpoint) bool {
		return !r.Automatic || r.Status == meta.CheckpointProcessing || !strings.HasPrefix(r.Name, prefix+"-")
	})
	kept := map[bool]int{}     // good ones and others
	for _, old := range rows { // newest first
		good := old.Status == meta.CheckpointReady
		if kept[good]++; kept[good] <= automaticKept && (good || kept[true] < automaticKept) {
			continue
		}
		if spare != nil && spare(old.ID) {
			continue
		}
		if err := s.Delete(ctx, c.OrgID, c.SandboxID, old.ID); err != nil {
			s.cfg.Log.Error("trimming automatic checkpoints", "checkpoint", old.ID, "error", err)
		}
	}
}

// saveUnsaved captures a generation that was replaced, and is still there
// because the server ended before its state was stored.
func (s *Service) saveUnsaved(ctx context.Context, sb meta.Sandbox, gen meta.Generation) error {
	proc, err := engine.DecodeProcess(gen.Process)
	if err != nil {
		return err
	}
	c := meta.Checkpoint{
		OrgID: sb.OrgID, SandboxID: sb.ID, Name: automaticName(savedPrefix), Kind: kindFull, Automatic: true,
		ParentID: gen.Checkpoint, Unverified: true,
	}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return err
	}
	s.hurry(gen)
	capt, err := s.freeze(ctx, proc, gen, c.ParentID)
	if err == nil {
		defer capt.close()
		err = s.keep(ctx, proc, gen, capt, &c, false)
	}
	if err != nil {
		s.failSaved(ctx, &c, err)
		return err
	}
	s.trimSaved(ctx, c)
	return nil
}
