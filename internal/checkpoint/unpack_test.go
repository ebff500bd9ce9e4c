// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"os"
	"testing"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// Of an engine that does not know the store everything can be used, and nothing
// that was unpacked for it is left.
func TestEngineThatDoesNotKnowTheStore(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.Engine.Early = true
	empty := func(after string) {
		t.Helper()
		if es, err := os.ReadDir(n.spool); err != nil || len(es) > 0 {
			t.Errorf("after %s: unpacked is %v, %v", after, es, err)
		}
	}
	sb := n.box(t, "before")
	c := n.checkpoint(t, sb.ID, "x")
	n.SetState(t, sb.ID, "after")
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil || n.GetState(t, sb.ID) != "before" {
		t.Errorf("restore: %v", err)
	}
	empty("a restore")
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{Count: 2})
	if err != nil || len(made) != 2 || n.GetState(t, made[1].ID) != "before" {
		t.Errorf("spawn: %d, %v", len(made), err)
	}
	empty("a spawn")
	if _, made, err = n.checkpoints.Fork(t.Context(), n.Org, sb.ID, checkpoint.SpawnRequest{}); err != nil || len(made) != 1 || n.GetState(t, made[0].ID) != "before" {
		t.Errorf("fork: %d, %v", len(made), err)
	}
	empty("a fork")

	n.failAt(sandboxtest.Restore, errStep)
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err == nil {
		t.Error("a restore that had to fail did not")
	}
	empty("a failed restore")
	n.Engine.Hook(nil)
	n.free.Store(1 << 20)
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); !fault.Is(err, fault.Unavailable) || fault.As(err).Hint == "" {
		t.Errorf("without room: %v", err)
	}
	empty("a restore without room")
	n.free.Store(1 << 40)
	n.damage(t, c.ID)
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); !fault.Is(err, fault.Damaged) || n.row(t, c.ID).Status != meta.CheckpointDamaged {
		t.Errorf("of a damaged one: %v, it is %s", err, n.row(t, c.ID).Status)
	}
	empty("a restore of a damaged one")
	if n.GetState(t, sb.ID) != "before" {
		t.Error("the sandbox is not as it was")
	}
}
