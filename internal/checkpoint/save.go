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

// reserve refuses a restore whose saving would not succeed, and waits for the room
// that the capture takes, before anything waits for the restore.
func (v *saver) reserve(ctx context.Context, op *sandbox.Operation, sb meta.Sandbox) error {
	waiting, err := op.Unsaved(ctx)
	if err != nil {
		return err
	}
	if len(waiting) > 0 { // each holds a whole sandbox's memory
		return v.s.stillUnsaved(ctx, sb, waiting[0])
	}
	old, err := op.Replaces(ctx)
	if err != nil || old == nil {
		return err
	}
	if err := v.s.roomFor(ctx, old.Process, sb.LastCheckpoint); err != nil {
		return unsavable(sb, err)
	}
	if err := v.s.loaded(ctx, old); err != nil {
		return err
	}
	v.room, err = v.s.reserve(ctx, old.Process, old.Generation)
	return err
}

// loadPatience is how long a restore waits until what it replaces has loaded. The
// capture then waits for what is missing, within its own deadline.
const loadPatience = time.Minute

// loaded waits until a generation that is to be saved has loaded: its capture would.
func (s *Service) loaded(ctx context.Context, old *sandbox.Replaced) error {
	if old.Loading == nil {
		return nil
	}
	s.hurry(old.Generation)
	select {
	case <-old.Loading:
	case <-time.After(loadPatience):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// unsavable is why a sandbox's present state cannot be saved.
func unsavable(sb meta.Sandbox, why error) error {
	return fault.Wrap(fault.Unavailable, why, "the present state of sandbox %s cannot be saved: %s", sb.ID, reason(why)).
		WithHint("free some space if that is it, or restore with --no-save and lose the present state")
}

// stillUnsaved refuses to save another state while that of a generation is not stored.
func (s *Service) stillUnsaved(ctx context.Context, sb meta.Sandbox, gen meta.Generation) error {
	c, err := s.savedRow(ctx, sb, gen)
	if err != nil {
		return err
	}
	what := ""
	if c.ErrorMsg != "" {
		what = ", and failed last with: " + c.ErrorMsg
	}
	return fault.New(fault.Conflict, "what sandbox %s was before an earlier restore is still to be stored as %s%s", sb.ID, savedName(gen), what).
		WithHint("try again when it is stored, or restore with --no-save and lose the present state")
}

// giveBack gives back room that was not used.
func (v *saver) giveBack() { v.room.giveBack() }

// saves gives the sandbox.Save for a sandbox; nil for a nil saver.
func (v *saver) saves(sb meta.Sandbox) sandbox.Save {
	if v == nil {
		return nil
	}
	return func(ctx context.Context, old sandbox.Replaced, freezes func() error) (engine.Held, func(context.Context) error, error) {
		return v.save(ctx, sb, old, freezes)
	}
}

func (v *saver) save(ctx context.Context, sb meta.Sandbox, old sandbox.Replaced, freezes func() error) (engine.Held, func(context.Context) error, error) {
	s := v.s
	c := meta.Checkpoint{
		OrgID: sb.OrgID, SandboxID: sb.ID, Name: savedName(old.Generation), Kind: kindFull, Automatic: true,
		ParentID: sb.LastCheckpoint, Unverified: !old.Well,
	}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return nil, nil, err
	}
	r := v.room
	v.room = room{} // the capture's from here on
	p := s.openParent(ctx, c.ParentID)
	defer p.close()
	capt, held, err := s.freezeHeld(ctx, old, p, r, freezes)
	if err == nil {
		// The last moment to find that there is no room for what it really is.
		if err = s.room(capt.CopiedBytes() + capt.StateSize + capt.MetaSize); err != nil {
			capt.close()
			err = errors.Join(err, held.Thaw(context.WithoutCancel(ctx)))
		}
	}
	if err != nil {
		s.failSaved(ctx, &c, err)
		return nil, nil, unsavable(sb, err)
	}
	return thawing{held, func() {
		capt.close()
		s.failSaved(ctx, &c, errors.New("the restore that it was made for did not take place"))
	}}, func(ctx context.Context) error { return v.store(ctx, capt, c) }, nil
}

// store makes what was captured durable. Where that fails the restore has happened
// all the same: what it replaced is saved later.
func (v *saver) store(ctx context.Context, capt *frozen, c meta.Checkpoint) error {
	s := v.s
	defer capt.close()
	err := s.keep(ctx, capt, &c, false)
	v.saved = Saved{Checkpoint: &c}
	if err != nil {
		s.failSaved(ctx, &c, err)
		v.saved.Note = fmt.Sprintf("the state before the restore could not be stored yet: %s; it stays frozen, and that is tried again until %s is ready",
			reason(err), c.ID)
		return err
	}
	if c.Unverified {
		v.saved.Note = "the sandbox's agent did not answer: its state was saved unverified"
	}
	// Not in the restore: what it restores from cannot be deleted before its end,
	// and may be what has to go.
	s.wg.Go(func() { s.trimSaved(ctx, c) })
	return nil
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

// savedName is the name of the checkpoint of what a restore replaced.
func savedName(gen meta.Generation) string {
	return savedPrefix + strings.TrimPrefix(gen.ID, "gn")
}

// savedRow gives the row of the last attempt to save a replaced generation that
// failed, or else a new one that is not inserted.
func (s *Service) savedRow(ctx context.Context, sb meta.Sandbox, gen meta.Generation) (meta.Checkpoint, error) {
	rows, err := s.cfg.Meta.Checkpoints(ctx, sb.OrgID, sb.ID)
	for _, c := range rows { // newest first
		if c.Name == savedName(gen) && c.Status == meta.CheckpointFailed {
			return c, err
		}
	}
	return meta.Checkpoint{
		OrgID: sb.OrgID, SandboxID: sb.ID, Name: savedName(gen), Kind: kindFull, Automatic: true,
		ParentID: gen.Checkpoint, Unverified: true,
	}, err
}

// saveUnsaved captures a generation that was replaced, and is still there
// because its state could not be stored, or the server ended before it was.
func (s *Service) saveUnsaved(ctx context.Context, sb meta.Sandbox, gen meta.Generation) error {
	proc, err := engine.DecodeProcess(gen.Process)
	if err != nil {
		return err
	}
	c, err := s.savedRow(ctx, sb, gen)
	if err != nil {
		return err
	}
	if c.ID == "" {
		err = s.insert(ctx, &c, sb, 0)
	} else { // the same one again, so that attempts do not pile up
		c.Status, c.FailedAt, c.ErrorMsg = meta.CheckpointProcessing, nil, ""
		err = s.cfg.Meta.UpdateCheckpoint(ctx, &c)
	}
	if err != nil {
		return err
	}
	err = s.captureUnsaved(ctx, proc, gen, &c)
	if err != nil {
		s.fail(ctx, &c, err)
	}
	s.trimSaved(ctx, c)
	return err
}

func (s *Service) captureUnsaved(ctx context.Context, proc engine.Process, gen meta.Generation, c *meta.Checkpoint) error {
	if err := s.roomFor(ctx, proc, c.ParentID); err != nil {
		return err
	}
	s.hurry(gen)
	p := s.openParent(ctx, c.ParentID)
	defer p.close()
	capt, err := s.freeze(ctx, proc, gen, p, nil)
	if err != nil {
		return err
	}
	defer capt.close()
	return s.keep(ctx, capt, c, false)
}
