// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
	"github.com/opencomputer/oc/internal/store"
)

// A damaged checkpoint is shown and can be deleted, but not used. It takes no
// place of another, and the start of a server leaves what is stored of it.
func TestDamaged(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "x")
	c.Status, c.ErrorMsg = meta.CheckpointDamaged, "a pack is missing"
	if err := n.Meta.UpdateCheckpoint(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start(t)
	if ids := n.stored(); !slices.Equal(ids, []string{c.ID}) {
		t.Errorf("in the store: %v", ids)
	}
	const reason = "is damaged: a pack is missing"
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); !fault.Is(err, fault.Damaged) || !strings.Contains(err.Error(), reason) {
		t.Errorf("Restore: %v", err)
	}
	if _, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{}); !fault.Is(err, fault.Damaged) || !strings.Contains(err.Error(), reason) {
		t.Errorf("Spawn: %v", err)
	}
	if rows, err := n.checkpoints.List(t.Context(), n.Org, sb.ID); err != nil || len(rows) != 1 || rows[0].Status != meta.CheckpointDamaged {
		t.Errorf("List: %+v, %v", rows, err)
	}
	for i := range checkpoint.MaxPerSandbox {
		n.checkpoint(t, sb.ID, fmt.Sprint(i))
	}
	if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Error(err)
	}
	if ids := n.stored(); len(ids) != checkpoint.MaxPerSandbox || slices.Contains(ids, c.ID) {
		t.Errorf("in the store: %v", ids)
	}
}

// Damage that a pager comes upon when the sandbox runs already is noted like any
// other, in the checkpoint that the bytes are missing from.
func TestDamageFoundWhileLoading(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.Engine.Files = true
	sb := n.box(t, "s")
	first := n.checkpoint(t, sb.ID, "first")
	second := n.checkpoint(t, sb.ID, "second")

	lost := func(what string, damage error, start func() ([]meta.Sandbox, error)) {
		t.Helper()
		runs := make(chan struct{})
		n.Engine.Hook(func(_ context.Context, step, _ string) error {
			if step == sandboxtest.Load {
				<-runs
				return damage
			}
			return nil
		})
		defer n.Engine.Hook(nil)
		made, err := start()
		close(runs)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		sandboxtest.Eventually(t, what+": the sandbox ends in an error", func() bool { return n.sandbox(t, made[0].ID).State == meta.SandboxError })
	}
	spawn := func(id string) func() ([]meta.Sandbox, error) {
		return func() ([]meta.Sandbox, error) {
			return n.checkpoints.Spawn(t.Context(), n.Org, id, checkpoint.SpawnRequest{})
		}
	}
	lost("no damage", errStep, spawn(first.ID))
	if got := n.row(t, first.ID); got.Status != meta.CheckpointReady {
		t.Errorf("after another failure it is %s: %s", got.Status, got.ErrorMsg)
	}
	damaged := store.Damaged(first.ID, "a segment does not match its hash")
	lost("its own", damaged, spawn(first.ID))
	if got := n.row(t, first.ID); got.Status != meta.CheckpointDamaged || got.ErrorMsg != damaged.Message {
		t.Errorf("it is %s: %s", got.Status, got.ErrorMsg)
	}
	if got := n.row(t, second.ID); got.Status != meta.CheckpointReady {
		t.Errorf("the other one is %s: %s", got.Status, got.ErrorMsg)
	}

	// A fork is loaded from its capture, and from the checkpoint that that is based on.
	lost("its base", store.Damaged(second.ID, "a segment does not match its hash"), func() ([]meta.Sandbox, error) {
		_, made, err := n.checkpoints.Fork(t.Context(), n.Org, sb.ID, checkpoint.SpawnRequest{})
		return made, err
	})
	if got := n.row(t, second.ID); got.Status != meta.CheckpointDamaged {
		t.Errorf("the base of a fork is %s", got.Status)
	}
}
