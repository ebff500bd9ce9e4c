// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// spoilObject replaces a checkpoint's object in the store.
func (n *node) spoilObject(t *testing.T, c meta.Checkpoint, by func(whole []byte) []byte) {
	t.Helper()
	path := filepath.Join(n.dir, "ckpt", c.Object)
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, by(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func cut(whole []byte) []byte { return whole[:20] }

func flipped(whole []byte) []byte {
	whole[20] ^= 1
	return whole
}

// A checkpoint whose object says nothing any more can be deleted, and the next
// server starts.
func TestDeleteDamagedObject(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]func([]byte) []byte{"cut": cut, "a flipped bit": flipped} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			sb := n.box(t, "s")
			other := n.checkpoint(t, sb.ID, "other")
			c := n.checkpoint(t, sb.ID, "x")
			n.spoilObject(t, c, by)
			if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Meta.CheckpointAnyOrg(t.Context(), c.ID); !fault.Is(err, fault.NotFound) {
				t.Errorf("its row: %v", err)
			}
			n.stop()
			n.start(t)
			if ids := n.stored(); !slices.Equal(ids, []string{other.ID}) {
				t.Errorf("in the store: %v", ids)
			}
			if _, err := n.checkpoints.StoreGC(t.Context(), false, nil); err != nil {
				t.Error(err)
			}
			if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, other.ID); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(filepath.Join(n.dir, "packs", c.Object)); err == nil && len(left) > 0 {
				t.Errorf("%d objects are left of it", len(left))
			}
		})
	}
}

// A deletion that cannot be finished keeps no server from starting, and is
// finished as soon as it can be.
func TestDeletionIsFinishedLater(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "x")
	n.spoilObject(t, c, func([]byte) []byte { return []byte("{\"version\":2}\n") })
	if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); !fault.Is(err, fault.Invalid) {
		t.Errorf("deleting what a later release wrote: %v", err)
	}
	n.stop()
	n.start(t)
	if got := n.row(t, c.ID).Status; got != meta.CheckpointDeleting {
		t.Errorf("it is %s", got)
	}
	n.spoilObject(t, c, func([]byte) []byte { return []byte("damaged") })
	n.checkpoint(t, sb.ID, "y") // the server works
	sandboxtest.Eventually(t, "the deletion is finished", func() bool {
		_, err := n.Meta.CheckpointAnyOrg(t.Context(), c.ID)
		return fault.Is(err, fault.NotFound)
	})
}
