// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
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
