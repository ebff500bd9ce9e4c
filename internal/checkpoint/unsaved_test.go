// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// unreadable is a capture's state that cannot be stored.
type unreadable struct{}

func (unreadable) ReadAt([]byte, int64) (int, error) { return 0, errStep }

// unstorable has the captures of a sandbox's present generation not be storable.
func (n *node) unstorable(t *testing.T, sandboxID string) {
	t.Helper()
	gen := n.sandbox(t, sandboxID).GenerationID
	n.Engine.Spoil(func(generation string, c *engine.Capture) {
		if generation == gen {
			c.State = unreadable{}
		}
	})
}

// waits demands that a generation is still to be stored.
func (n *node) waits(t *testing.T, generation string) {
	t.Helper()
	g, err := n.Meta.Generation(t.Context(), generation)
	if err != nil || g.State != meta.GenerationSaving || !n.Engine.Alive(decode(t, g.Process)) {
		t.Fatalf("what was replaced is %q: %v", g.State, err)
	}
}

// becomes waits for a status of a checkpoint.
func (n *node) becomes(t *testing.T, id string, want meta.CheckpointStatus) {
	t.Helper()
	sandboxtest.Eventually(t, "it is "+string(want), func() bool { return n.row(t, id).Status == want })
}

// That there is no room for the present state is found before it is replaced: the
// sandbox runs on.
func TestNoRoomForWhatIsReplaced(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "first")
	c := n.checkpoint(t, sb.ID, "c")
	n.SetState(t, sb.ID, "second")
	n.Engine.Spoil(func(_ string, c *engine.Capture) { c.PagesSize = 1 << 60 })
	_, err := n.checkpoints.RestoreSaving(t.Context(), n.Org, sb.ID, c.ID)
	if f := fault.As(err); !fault.Is(err, fault.Unavailable) || !strings.Contains(f.Message, "no space") || !strings.Contains(f.Hint, "--no-save") {
		t.Errorf("without room: %v", err)
	}
	n.Engine.Spoil(nil)
	if now := n.sandbox(t, sb.ID); now.GenerationID != sb.GenerationID || n.GetState(t, sb.ID) != "second" {
		t.Errorf("it is %+v", now)
	}
	if g, err := n.Meta.Generation(t.Context(), sb.GenerationID); err != nil || g.State != meta.GenerationLive {
		t.Errorf("its generation is %s: %v", g.State, err)
	}
	if open := n.Engine.Captures.Load(); open != 0 {
		t.Errorf("%d captures are open", open)
	}
	if saved := n.restores(t, sb.ID, c.ID); saved.Checkpoint.Status != meta.CheckpointReady {
		t.Errorf("saved: %+v", saved)
	}
	n.settled(t, sb.ID)
}

// What was replaced and cannot be stored stays, and is stored when it can be, also
// by the next server. Meanwhile no second one is added to it.
func TestReplacedIsStoredLater(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"by the same server": false, "by the next one": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			sb := n.box(t, "first")
			c := n.checkpoint(t, sb.ID, "c")
			n.SetState(t, sb.ID, "second")
			n.unstorable(t, sb.ID)
			saved := n.restores(t, sb.ID, c.ID)
			if !strings.Contains(saved.Note, errStep.Error()) || !strings.Contains(saved.Note, "tried again") || n.GetState(t, sb.ID) != "first" {
				t.Errorf("the note %q", saved.Note)
			}
			n.waits(t, sb.GenerationID)
			if restart {
				n.stop()
				n.start(t)
				n.waits(t, sb.GenerationID)
			}
			_, err := n.checkpoints.RestoreSaving(t.Context(), n.Org, sb.ID, c.ID)
			if f := fault.As(err); !fault.Is(err, fault.Conflict) || !strings.Contains(f.Message, saved.Checkpoint.Name) || !strings.Contains(f.Hint, "--no-save") {
				t.Errorf("a second one: %v", err)
			}
			if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil {
				t.Errorf("without saving: %v", err)
			}
			n.waits(t, sb.GenerationID)
			n.Engine.Spoil(nil)
			n.becomes(t, saved.Checkpoint.ID, meta.CheckpointReady)
			n.settled(t, sb.ID)
			if all := n.automatic(t, sb.ID, meta.CheckpointFailed); len(all) > 0 {
				t.Errorf("attempts are left: %v", all)
			}
			n.restores(t, sb.ID, saved.Checkpoint.ID)
			if got := n.GetState(t, sb.ID); got != "second" {
				t.Errorf("saved was %q", got)
			}
			n.settled(t, sb.ID)
		})
	}
}

// Nothing that happens by itself takes from a sandbox what is still to be stored;
// a kill does.
func TestUnsavedOutlivesExpiry(t *testing.T) {
	t.Parallel()
	for name, kill := range map[string]bool{"stored": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			sb := n.box(t, "first")
			c := n.checkpoint(t, sb.ID, "c")
			n.unstorable(t, sb.ID)
			saved := n.restores(t, sb.ID, c.ID)
			if err := n.sandboxes.SetTimeout(t.Context(), n.Org, sb.ID, 60); err != nil {
				t.Fatal(err)
			}
			n.Clock.Advance(61 * time.Second)
			sandboxtest.Eventually(t, "it has expired", func() bool { return n.sandbox(t, sb.ID).State == meta.SandboxStopped })
			n.waits(t, sb.GenerationID)
			if kill {
				if err := n.sandboxes.Kill(t.Context(), n.Org, sb.ID); err != nil {
					t.Error(err)
				}
				if row := n.sandbox(t, sb.ID); row.Reason != "expired" {
					t.Errorf("it is stopped because %q", row.Reason)
				}
			} else {
				n.Engine.Spoil(nil)
				n.becomes(t, saved.Checkpoint.ID, meta.CheckpointReady)
			}
			sandboxtest.Eventually(t, "nothing is left", func() bool {
				rows, err := n.Meta.Generations(t.Context())
				return err == nil && len(rows) == 0
			})
			n.Empty(t)
		})
	}
}

// In the instant in which what was replaced is stored it is known to be: no server
// that comes upon it saves it a second time.
func TestStoredIsNotSavedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "c")
	reached, letGo := n.holdAt(sandboxtest.Destroy)
	defer letGo()
	saved := n.restores(t, sb.ID, c.ID)
	await(t, "the end of what was replaced", reached)
	g, err := n.Meta.Generation(t.Context(), sb.GenerationID)
	if err != nil || g.State != meta.GenerationEnding || n.row(t, saved.Checkpoint.ID).Status != meta.CheckpointReady {
		t.Errorf("it is %q: %v", g.State, err)
	}
	letGo()
	n.settled(t, sb.ID)
}
