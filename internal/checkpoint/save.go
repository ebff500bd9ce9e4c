// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

const (
	// savedPrefix begins the names of checkpoints of what a restore replaced.
	savedPrefix = "before-restore"
	// savedKept is how many of them a sandbox keeps.
	savedKept = 3
	// wellTimeout is how long an agent may take to answer before its sandbox
	// is saved without it.
	wellTimeout = 2 * time.Second
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
		ParentID: sb.LastCheckpoint, Unverified: !well(ctx, old),
	}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return nil, nil, err
	}
	s.hurry(old.Generation)
	r := v.room
	v.room = room{} // the capture's from here on
	capt, held, err := s.freezeHeld(ctx, old.Process, old.Generation, c.ParentID, r, sandbox.HoldLimit)
	if err != nil {
		s.fail(ctx, &c, err)
		return nil, nil, fault.Wrap(fault.Unavailable, err, "the present state of sandbox %s cannot be saved: %s", sb.ID, reason(err)).
			WithHint("restore with --no-save to lose it")
	}
	store := func(ctx context.Context) error {
		defer capt.close()
		err := s.keep(ctx, old.Process, old.Generation, capt, &c, false)
		v.saved = Saved{Checkpoint: &c}
		switch {
		case err != nil:
			s.fail(ctx, &c, err)
			v.saved.Note = fmt.Sprintf("the state before the restore could not be stored: %s", reason(err))
			return nil // the restore itself has happened
		case c.Unverified:
			v.saved.Note = "the sandbox's agent did not answer: its state was saved unverified"
		}
		s.trimSaved(ctx, c)
		return nil
	}
	return thawing{held, func() {
		capt.close()
		s.fail(ctx, &c, errors.New("the restore that it was made for did not take place"))
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

// well tells whether the sandbox's agent answers.
func well(ctx context.Context, old sandbox.Replaced) bool {
	if old.Agent == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, wellTimeout)
	defer cancel()
	_, err := old.Agent.Sessions(ctx)
	return err == nil
}

// trimSaved deletes the sandbox's oldest saved states beyond savedKept.
func (s *Service) trimSaved(ctx context.Context, c meta.Checkpoint) {
	rows, err := s.cfg.Meta.Checkpoints(ctx, c.OrgID, c.SandboxID)
	if err != nil {
		s.cfg.Log.Error("trimming saved states", "sandbox", c.SandboxID, "error", err)
		return
	}
	rows = slices.DeleteFunc(rows, func(r meta.Checkpoint) bool {
		return !r.Automatic || r.Status == meta.CheckpointProcessing || !strings.HasPrefix(r.Name, savedPrefix+"-")
	})
	for _, old := range rows[min(savedKept, len(rows)):] { // newest first
		if err := s.Delete(ctx, c.OrgID, c.SandboxID, old.ID); err != nil {
			s.cfg.Log.Error("trimming saved states", "checkpoint", old.ID, "error", err)
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
	capt, err := s.freeze(ctx, proc, gen, c.ParentID)
	if err == nil {
		defer capt.close()
		err = s.keep(ctx, proc, gen, capt, &c, false)
	}
	if err != nil {
		s.fail(ctx, &c, err)
		return err
	}
	s.trimSaved(ctx, c)
	return nil
}
