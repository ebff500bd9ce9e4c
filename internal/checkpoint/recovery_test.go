// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
	"github.com/opencomputer/oc/internal/store"
)

// An idle sandbox is checkpointed before it is stopped, and can be had again.
func TestExpiry(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "precious")
	if err := n.sandboxes.SetTimeout(t.Context(), n.Org, sb.ID, 60); err != nil {
		t.Fatal(err)
	}
	n.failAt(sandboxtest.Capture, errStep)
	n.Clock.Advance(61 * time.Second)
	sandboxtest.Eventually(t, "a failed attempt", func() bool {
		list, err := n.checkpoints.List(t.Context(), n.Org, sb.ID)
		return err == nil && len(list) == 1 && list[0].Status == meta.CheckpointFailed
	})
	if row := n.sandbox(t, sb.ID); row.State != meta.SandboxRunning {
		t.Fatalf("a sandbox that could not be saved is %s", row.State)
	}
	n.Engine.Hook(nil)
	sandboxtest.Eventually(t, "it is stopped", func() bool {
		n.Clock.Advance(61 * time.Second)
		return n.sandbox(t, sb.ID).State == meta.SandboxStopped
	})
	list, err := n.checkpoints.List(t.Context(), n.Org, sb.ID)
	if err != nil || list[0].Status != meta.CheckpointReady || !strings.HasPrefix(list[0].Name, "expired-") || len(list[0].Name) != len("expired-")+8 || !list[0].Automatic {
		t.Fatalf("%+v, %v", list, err)
	}
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, list[0].ID, checkpoint.SpawnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n.GetState(t, made[0].ID) != "precious" {
		t.Error("its state is lost")
	}
}

// A new server finds no row that says more than there is, and no artefact
// without a row.
func TestRecovery(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	good, lost, going := n.checkpoint(t, sb.ID, "good"), n.checkpoint(t, sb.ID, "lost"), n.checkpoint(t, sb.ID, "going")
	n.stop()
	n.openStore(t)
	if err := n.store.Delete(t.Context(), lost.Object); err != nil {
		t.Fatal(err)
	}
	going.Status = meta.CheckpointDeleting
	half := meta.Checkpoint{OrgID: n.Org, SandboxID: sb.ID, Name: "half", Kind: "full", Status: meta.CheckpointProcessing}
	if err := errors.Join(n.Meta.UpdateCheckpoint(t.Context(), &going), n.Meta.InsertCheckpoint(t.Context(), &half, 0)); err != nil {
		t.Fatal(err)
	}
	n.stray(t, half.ID)
	n.stray(t, "cp-norow")
	n.store.Close()
	n.start(t)
	for id, want := range map[string]meta.CheckpointStatus{good.ID: meta.CheckpointReady, lost.ID: meta.CheckpointDamaged, half.ID: meta.CheckpointFailed} {
		if got := n.row(t, id); got.Status != want || want != meta.CheckpointReady && got.ErrorMsg == "" {
			t.Errorf("%s is %s (%s), want %s", got.Name, got.Status, got.ErrorMsg, want)
		}
	}
	if _, err := n.Meta.CheckpointAnyOrg(t.Context(), going.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("a deletion was not finished: %v", err)
	}
	// What no row knows is another database's: it is left alone.
	if ids := n.stored(); !slices.Equal(ids, slices.Sorted(slices.Values([]string{good.ID, "cp-norow"}))) {
		t.Errorf("in the store: %v", ids)
	}
	n.checkpoint(t, sb.ID, "half") // the name is free
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, good.ID); err != nil {
		t.Error(err)
	}
}

// stray stores a checkpoint without a row of its own.
func (n *node) stray(t *testing.T, id string) {
	t.Helper()
	nothing := strings.NewReader("")
	_, _, err := n.store.Put(t.Context(), store.PutRequest{
		Manifest: store.Manifest{Checkpoint: id, Org: n.Org},
		Capture:  &engine.Capture{State: nothing, Meta: nothing, Pages: nothing},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A sandbox whose channel nobody holds any more is saved through a capture.
func TestRescue(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "precious")
	n.stop()
	if err := n.Keeper.Drop(t.Context(), sb.GenerationID); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	sandboxtest.Eventually(t, "another generation took over", func() bool {
		return n.sandbox(t, sb.ID).GenerationID != sb.GenerationID
	})
	row := n.sandbox(t, sb.ID)
	if row.State != meta.SandboxRunning || row.GenerationID == sb.GenerationID || n.GetState(t, sb.ID) != "precious" {
		t.Fatalf("%+v", row)
	}
	n.settled(t, sb.ID)
	list, err := n.checkpoints.List(t.Context(), n.Org, sb.ID)
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Name, "recovered-") {
		t.Errorf("%+v, %v", list, err)
	}
}

// A sandbox whose channel is lost, and whose state cannot be stored for now, runs on
// until it can be; the attempts do not pile up.
func TestRescueWaitsForTheStore(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "precious")
	n.stop()
	if err := n.Keeper.Drop(t.Context(), sb.GenerationID); err != nil {
		t.Fatal(err)
	}
	var tries atomic.Int32
	n.Engine.Spoil(func(_ string, c *engine.Capture) {
		tries.Add(1)
		c.State = unreadable{}
	})
	n.start(t)
	sandboxtest.Eventually(t, "it was tried more often than a failure is", func() bool { return tries.Load() > 5 })
	if row := n.sandbox(t, sb.ID); row.State != meta.SandboxRunning || row.GenerationID != sb.GenerationID {
		t.Errorf("it is %+v", row)
	}
	if failed := n.automatic(t, sb.ID, meta.CheckpointFailed); len(failed) > 4 { // the last may not be trimmed yet
		t.Errorf("%d attempts are left", len(failed))
	}
	n.Engine.Spoil(nil)
	sandboxtest.Eventually(t, "another generation took over", func() bool {
		return n.sandbox(t, sb.ID).GenerationID != sb.GenerationID
	})
	if got := n.GetState(t, sb.ID); got != "precious" {
		t.Errorf("it is %q", got)
	}
	n.settled(t, sb.ID)
}

// A restore, which needs no agent, ends the waiting for a recovery.
func TestRestoreInsteadOfARescue(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "first")
	c := n.checkpoint(t, sb.ID, "c")
	n.stop()
	if err := n.Keeper.Drop(t.Context(), sb.GenerationID); err != nil {
		t.Fatal(err)
	}
	n.unstorable(t, sb.ID)
	n.start(t)
	sandboxtest.Eventually(t, "its recovery waits", func() bool { return len(n.automatic(t, sb.ID, meta.CheckpointFailed)) > 0 })
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Fatal(err)
	}
	l, err := n.sandboxes.Acquire(t.Context(), n.Org, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	n.settled(t, sb.ID)
}

// Of what was recovered the newest three stay, and what a sandbox rests on.
func TestRecoveredAreTrimmed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "precious")
	running := []string{sb.ID}
	rescue := func() string {
		t.Helper()
		before := n.sandbox(t, sb.ID).GenerationID
		n.stop()
		if err := n.Keeper.Drop(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		n.start(t)
		sandboxtest.Eventually(t, "another generation took over", func() bool { return n.sandbox(t, sb.ID).GenerationID != before })
		n.settled(t, running...)
		return n.sandbox(t, sb.ID).LastCheckpoint
	}
	first := rescue()
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, first, checkpoint.SpawnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	running = append(running, made[0].ID)
	var later []string // newest first
	for range 4 {
		later = append([]string{rescue()}, later...)
	}
	n.keeps(t, sb.ID, append(slices.Clone(later[:3]), first)...)
	if err := n.sandboxes.Kill(t.Context(), n.Org, made[0].ID); err != nil {
		t.Fatal(err)
	}
	running = running[:1]
	n.keeps(t, sb.ID, rescue(), later[0], later[1])
}

func TestTree(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a, alone := n.box(t, "s"), n.box(t, "s")
	one := n.checkpoint(t, a.ID, "one")
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, one.ID, checkpoint.SpawnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	two := n.checkpoint(t, a.ID, "two")
	three := n.checkpoint(t, made[0].ID, "three")
	want := map[string]string{a.ID: "", one.ID: a.ID, made[0].ID: one.ID, two.ID: one.ID, three.ID: one.ID}
	for _, root := range []string{a.ID, made[0].ID} {
		nodes, err := n.checkpoints.Tree(t.Context(), n.Org, root)
		if err != nil || len(nodes) != len(want) {
			t.Errorf("Tree(%s): %v, %v", root, nodes, err)
		}
		seen := map[string]bool{"": true}
		for _, node := range nodes {
			if p, ok := want[node.ID]; !ok || p != node.ParentID || !seen[p] {
				t.Errorf("%s descends from %q", node.ID, node.ParentID)
			}
			seen[node.ID] = true
		}
	}
	if nodes, err := n.checkpoints.Tree(t.Context(), n.Org, alone.ID); err != nil || len(nodes) != 1 {
		t.Errorf("Tree of one alone: %v, %v", nodes, err)
	}
	if nodes, err := n.checkpoints.Tree(t.Context(), n.Org, ""); err != nil || len(nodes) != len(want)+1 {
		t.Errorf("Tree: %v, %v", nodes, err)
	}
	if _, err := n.checkpoints.Tree(t.Context(), "org-x", a.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("Tree of a foreign one: %v", err)
	}
}
