// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
	"github.com/opencomputer/oc/internal/store"
)

// A damaged checkpoint is shown and can be deleted, but not used. It takes no
// place of another, the start of a server leaves what is stored of it, and what it
// shares with others is not built on when it is gone.
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
	if known, err := os.ReadFile(filepath.Join(n.state, "damaged")); err != nil || !strings.Contains(string(known), "packs/"+c.Object) {
		t.Errorf("the store distrusts %q, %v", known, err)
	}
	if ids := n.stored(); len(ids) != checkpoint.MaxPerSandbox || slices.Contains(ids, c.ID) {
		t.Errorf("in the store: %v", ids)
	}
}

// Damage is noted of the bytes that it was found in, and changes nothing else of a
// row that was written to since it was read.
func TestDamageIsOfWhatWasRead(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "x")
	spawn := func(meanwhile func(row *meta.Checkpoint)) meta.Checkpoint {
		t.Helper()
		n.Engine.Hook(func(ctx context.Context, step, _ string) error {
			if step != sandboxtest.Restore {
				return nil
			}
			row := n.row(t, c.ID)
			meanwhile(&row)
			if err := n.Meta.UpdateCheckpoint(ctx, &row); err != nil {
				t.Error(err)
			}
			return store.Damaged(c.ID, "a segment does not match its hash")
		})
		defer n.Engine.Hook(nil)
		if _, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{}); !fault.Is(err, fault.Damaged) {
			t.Fatalf("Spawn: %v", err)
		}
		return n.row(t, c.ID)
	}
	if got := spawn(func(row *meta.Checkpoint) { row.Object = "another" }); got.Status != meta.CheckpointReady || got.Object != "another" {
		t.Errorf("stored anew meanwhile, it is %s with the object %q", got.Status, got.Object)
	}
	if err := n.Meta.UpdateCheckpoint(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	if got := spawn(func(row *meta.Checkpoint) { row.AddedBytes = 7 }); got.Status != meta.CheckpointDamaged || got.ErrorMsg == "" || got.AddedBytes != 7 {
		t.Errorf("it is %s: %q, and has added %d bytes", got.Status, got.ErrorMsg, got.AddedBytes)
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

// Damage that a pager comes upon while there is no server, or one that did not
// begin the restore, is noted by the server that there is then.
func TestDamageFoundWithoutTheServer(t *testing.T) {
	t.Parallel()
	for name, down := range map[string]bool{"while it was down": true, "after it was replaced": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			sb := n.box(t, "s")
			c := n.checkpoint(t, sb.ID, "x")
			finds := make(chan struct{})
			n.Engine.Hook(func(_ context.Context, step, _ string) error {
				if step == sandboxtest.Load {
					<-finds
					return store.Damaged(c.ID, "a segment does not match its hash")
				}
				return nil
			})
			made, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{})
			if err != nil {
				t.Fatal(err)
			}
			gen, err := n.Meta.Generation(t.Context(), n.sandbox(t, made[0].ID).GenerationID)
			if err != nil {
				t.Fatal(err)
			}
			proc, err := engine.DecodeProcess(gen.Process)
			if err != nil {
				t.Fatal(err)
			}
			n.stop()
			if down {
				close(finds)
				sandboxtest.Eventually(t, "the engine ends", func() bool { return !n.Engine.Alive(proc) })
			}
			n.start(t)
			if !down {
				close(finds)
			}
			sandboxtest.Eventually(t, "the sandbox ends in an error", func() bool { return n.sandbox(t, made[0].ID).State == meta.SandboxError })
			if got := n.row(t, c.ID); got.Status != meta.CheckpointDamaged || !strings.Contains(n.sandbox(t, made[0].ID).Reason, "does not match its hash") {
				t.Errorf("it is %s: %q; the sandbox says %q", got.Status, got.ErrorMsg, n.sandbox(t, made[0].ID).Reason)
			}
		})
	}
}

// A checkpoint whose object is gone from the store is found by a check, also after
// a repair has taken the object out of the way, and a sandbox's next checkpoint
// relies on nothing of it.
func TestObjectGone(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	other := n.checkpoint(t, sb.ID, "other")
	c := n.checkpoint(t, sb.ID, "x")
	path := filepath.Join(n.dir, "ckpt", c.Object)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := func(what, status string) {
		t.Helper()
		r, err := n.checkpoints.StoreCheck(t.Context(), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		bad := slices.ContainsFunc(r.Problems, func(p checkpoint.StoreProblem) bool { return p.Object == c.Object && !p.Harmless })
		if got := n.row(t, c.ID).Status; string(got) != status || bad != (got == meta.CheckpointDamaged) {
			t.Errorf("%s: it is %s, problems: %+v", what, got, r.Problems)
		}
		if got := n.row(t, other.ID).Status; got != meta.CheckpointReady {
			t.Errorf("%s: the other one is %s", what, got)
		}
	}
	found("before", string(meta.CheckpointReady))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := n.checkpoints.Verify(t.Context(), n.Org, c.ID, nil); !fault.Is(err, fault.Damaged) || n.row(t, c.ID).Status != meta.CheckpointDamaged {
		t.Errorf("verified without its object: %v", err)
	}
	found("without its object", string(meta.CheckpointDamaged))
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	found("with it", string(meta.CheckpointReady))
	if err := os.WriteFile(path, whole[:20], 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := n.checkpoints.StoreRepair(t.Context(), nil); err != nil || len(r.Done) == 0 || len(r.Remaining) == 0 {
		t.Errorf("repair: %+v, %v", r, err)
	}
	found("after a repair", string(meta.CheckpointDamaged))
	if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Error(err)
	}
}

// Only what a check has read whole is ready again: not what it could not open.
func TestOnlyWhatWasReadIsReady(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "x")
	c.Status, c.ErrorMsg = meta.CheckpointDamaged, "a pack is missing"
	if err := n.Meta.UpdateCheckpoint(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	var whole []byte
	n.spoilObject(t, c, func(b []byte) []byte { whole = b; return []byte("{\"version\":2}\n") })
	check := func(readData bool, want meta.CheckpointStatus) {
		t.Helper()
		if _, err := n.checkpoints.StoreCheck(t.Context(), readData, nil); err != nil {
			t.Fatal(err)
		}
		if got := n.row(t, c.ID).Status; got != want {
			t.Errorf("it is %s, want %s", got, want)
		}
	}
	check(true, meta.CheckpointDamaged)
	n.spoilObject(t, c, func([]byte) []byte { return whole })
	check(false, meta.CheckpointDamaged)
	check(true, meta.CheckpointReady)
}
