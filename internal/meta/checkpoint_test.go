// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

func testCheckpointRoundTrip(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	org := newOrg(t, db, "a")
	s := newSandbox(t, db, org.ID)
	ready, failed := at(2), at(3)
	c := Checkpoint{
		OrgID: org.ID, SandboxID: s.ID, Name: "n", Kind: "full", Status: CheckpointProcessing, ErrorMsg: "e",
		Automatic: true, ParentID: "cp-0", SizeBytes: 1 << 40, AddedBytes: 7, Template: "base", TreeHash: "t",
		ImageHash: "i", Build: "b", CPUs: 2, MemoryMB: 3, DiskMB: 4, Envs: map[string]string{"A": "b"},
		CreatedAt: at(1), ReadyAt: &ready, FailedAt: &failed,
	}
	must(t, db.InsertCheckpoint(ctx, &c, 1))
	got, err := db.Checkpoint(ctx, org.ID, c.ID)
	must(t, err)
	expectEqual(t, got, c)
	c.Status, c.FailedAt, c.Automatic, c.SizeBytes = CheckpointReady, nil, false, 1
	must(t, db.UpdateCheckpoint(ctx, &c))
	got, err = db.CheckpointAnyOrg(ctx, c.ID)
	must(t, err)
	expectEqual(t, got, c)
	must(t, db.DeleteCheckpointRow(ctx, c.ID))
	_, err = db.CheckpointAnyOrg(ctx, c.ID)
	expectFault(t, err, fault.NotFound, "checkpoint not found")
	expectFault(t, db.UpdateCheckpoint(ctx, &c), fault.NotFound, "checkpoint not found")
}

func testCheckpointNames(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	org := newOrg(t, db, "a")
	s, other := newSandbox(t, db, org.ID), newSandbox(t, db, org.ID)
	first := newCheckpoint(t, db, s, "n", CheckpointProcessing)
	newCheckpoint(t, db, other, "n", CheckpointReady) // names are a sandbox's own

	again := Checkpoint{OrgID: org.ID, SandboxID: s.ID, Name: "n", Status: CheckpointProcessing}
	expectFault(t, db.InsertCheckpoint(ctx, &again, 0), fault.Conflict, nameTaken)
	expectEqual(t, again.ID, "")

	// A failed one gives its name free, for ever: it cannot come back to it.
	first.Status = CheckpointFailed
	must(t, db.UpdateCheckpoint(ctx, &first))
	must(t, db.InsertCheckpoint(ctx, &again, 0))
	first.Status = CheckpointReady
	expectFault(t, db.UpdateCheckpoint(ctx, &first), fault.Conflict, nameTaken)

	// So does one that is being deleted.
	again.Status = CheckpointDeleting
	must(t, db.UpdateCheckpoint(ctx, &again))
	last := newCheckpoint(t, db, s, "n", CheckpointReady)

	// A damaged one keeps it, because a repair may make it ready again.
	last.Status = CheckpointDamaged
	must(t, db.UpdateCheckpoint(ctx, &last))
	again.ID, again.Status = "", CheckpointProcessing
	expectFault(t, db.InsertCheckpoint(ctx, &again, 0), fault.Conflict, nameTaken)
	last.Status = CheckpointReady
	must(t, db.UpdateCheckpoint(ctx, &last))
}

func testCheckpointLimit(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	org := newOrg(t, db, "a")
	s := newSandbox(t, db, org.ID)
	newCheckpoint(t, db, s, "failed", CheckpointFailed)
	newCheckpoint(t, db, s, "going", CheckpointDeleting)
	newCheckpoint(t, db, s, "damaged", CheckpointDamaged)
	newCheckpoint(t, db, newSandbox(t, db, org.ID), "of another", CheckpointReady)
	automatic := Checkpoint{OrgID: org.ID, SandboxID: s.ID, Name: "automatic", Automatic: true}
	must(t, db.InsertCheckpoint(ctx, &automatic, 1))
	newCheckpoint(t, db, s, "one", CheckpointReady)

	c := Checkpoint{OrgID: org.ID, SandboxID: s.ID, Name: "two", Status: CheckpointProcessing}
	expectFault(t, db.InsertCheckpoint(ctx, &c, 1), fault.Invalid,
		"sandbox "+s.ID+" has 1 checkpoints, the limit is 1")
	must(t, db.InsertCheckpoint(ctx, &c, 2))
	automatic.ID, automatic.Name = "", "another automatic"
	must(t, db.InsertCheckpoint(ctx, &automatic, 2))

	c = Checkpoint{OrgID: org.ID, SandboxID: "sb-none", Name: "x"}
	expectFault(t, db.InsertCheckpoint(ctx, &c, 2), fault.NotFound, "sandbox not found")
	c = Checkpoint{OrgID: newOrg(t, db, "b").ID, SandboxID: s.ID, Name: "x"}
	expectFault(t, db.InsertCheckpoint(ctx, &c, 2), fault.NotFound, "sandbox not found")
}

// testCheckpointLimitAtOnce is 20 parallel creates at limit 10, on two handles.
func testCheckpointLimitAtOnce(t *testing.T, d database) {
	const tries, limit = 20, 10
	handles := []*DB{d.open(t), d.open(t)}
	org := newOrg(t, handles[0], "a")
	s := newSandbox(t, handles[0], org.ID)
	var wg sync.WaitGroup
	var made atomic.Int32
	for i := range tries {
		wg.Go(func() {
			c := Checkpoint{OrgID: org.ID, SandboxID: s.ID, Name: fmt.Sprint(i), Status: CheckpointProcessing}
			err := handles[i%2].InsertCheckpoint(t.Context(), &c, limit)
			switch {
			case err == nil:
				made.Add(1)
			case !fault.Is(err, fault.Invalid):
				t.Errorf("insert: %v", err)
			}
		})
	}
	wg.Wait()
	rows, err := handles[0].Checkpoints(t.Context(), org.ID, s.ID)
	must(t, err)
	if made.Load() != limit || len(rows) != limit {
		t.Errorf("%d succeeded, %d rows, want %d", made.Load(), len(rows), limit)
	}
}

func testCheckpointNameAtOnce(t *testing.T, d database) {
	db := d.open(t)
	org := newOrg(t, db, "a")
	s := newSandbox(t, db, org.ID)
	var wg sync.WaitGroup
	var made atomic.Int32
	for range 10 {
		wg.Go(func() {
			c := Checkpoint{OrgID: org.ID, SandboxID: s.ID, Name: "same", Status: CheckpointProcessing}
			err := db.InsertCheckpoint(t.Context(), &c, 0)
			switch {
			case err == nil:
				made.Add(1)
			case !fault.Is(err, fault.Conflict):
				t.Errorf("insert: %v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("%d checkpoints of one name", made.Load())
	}
}

func testCheckpointDeleting(t *testing.T, d database) {
	db := withClock(d.open(t))
	ctx := t.Context()
	org := newOrg(t, db, "a")
	s := newSandbox(t, db, org.ID)
	a := newCheckpoint(t, db, s, "a", CheckpointProcessing)
	b := newCheckpoint(t, db, s, "b", CheckpointFailed)
	c := newCheckpoint(t, db, s, "c", CheckpointReady)
	lists := func() [][]string {
		of, err := db.Checkpoints(ctx, org.ID, s.ID)
		must(t, err)
		all, err := db.CheckpointsOfOrg(ctx, org.ID)
		must(t, err)
		return [][]string{ids(of, checkpointID), ids(all, checkpointID)}
	}
	newestFirst := []string{c.ID, b.ID, a.ID}
	expectEqual(t, lists(), [][]string{newestFirst, newestFirst})

	a.Status = CheckpointDeleting
	must(t, db.UpdateCheckpoint(ctx, &a))
	expectEqual(t, lists(), [][]string{{c.ID, b.ID}, {c.ID, b.ID}})
	_, err := db.Checkpoint(ctx, org.ID, a.ID)
	expectFault(t, err, fault.NotFound, "checkpoint not found")
	// A late writer cannot bring it back; who deletes it may go on.
	a.Status = CheckpointReady
	expectFault(t, db.UpdateCheckpoint(ctx, &a), fault.NotFound, "checkpoint not found")
	a.Status, a.ErrorMsg = CheckpointDeleting, "tried once"
	must(t, db.UpdateCheckpoint(ctx, &a))

	going, err := db.CheckpointsAnyOrg(ctx, CheckpointDeleting, CheckpointProcessing)
	must(t, err)
	expectEqual(t, ids(going, checkpointID), []string{a.ID})
	all, err := db.CheckpointsAnyOrg(ctx)
	must(t, err)
	expectEqual(t, ids(all, checkpointID), []string{a.ID, b.ID, c.ID})
}

// testForeignOrg asks for everything of one org in the name of another.
func testForeignOrg(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	owner, foreign := newOrg(t, db, "a"), newOrg(t, db, "b")
	s := newSandbox(t, db, owner.ID)
	c := newCheckpoint(t, db, s, "n", CheckpointReady)
	must(t, db.InsertTemplate(ctx, &Template{OrgID: owner.ID, Name: "mine"}))
	for _, org := range []string{foreign.ID, ""} {
		_, err := db.Sandbox(ctx, org, s.ID)
		expectFault(t, err, fault.NotFound, "sandbox not found")
		_, err = db.Checkpoint(ctx, org, c.ID)
		expectFault(t, err, fault.NotFound, "checkpoint not found")
		_, err = db.Template(ctx, org, "mine")
		expectFault(t, err, fault.NotFound, "template not found: mine")
		sandboxes, err := db.Sandboxes(ctx, org, SandboxFilter{})
		must(t, err)
		of, err := db.Checkpoints(ctx, org, s.ID)
		must(t, err)
		all, err := db.CheckpointsOfOrg(ctx, org)
		must(t, err)
		templates, err := db.Templates(ctx, org)
		must(t, err)
		if n := len(sandboxes) + len(of) + len(all) + len(templates); n != 0 {
			t.Errorf("org %q sees %d foreign rows", org, n)
		}
	}
}

// What is found out about a checkpoint is written if it is still what was looked
// at, and changes nothing else.
func testCheckpointJudged(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	c := newCheckpoint(t, db, newSandbox(t, db, newOrg(t, db, "a").ID), "n", CheckpointReady)
	judge := func(c Checkpoint, status CheckpointStatus, want bool) Checkpoint {
		t.Helper()
		changed, err := db.JudgeCheckpoint(ctx, c, status, "why")
		must(t, err)
		expectEqual(t, changed, want)
		now, err := db.CheckpointAnyOrg(ctx, c.ID)
		must(t, err)
		return now
	}
	stale := c
	c.Object, c.SizeBytes = "another", 5 // meanwhile
	must(t, db.UpdateCheckpoint(ctx, &c))
	expectEqual(t, judge(stale, CheckpointDamaged, false), c)
	want := c
	want.Status, want.ErrorMsg = CheckpointDamaged, "why"
	stale = c
	stale.SizeBytes = 0
	expectEqual(t, judge(stale, CheckpointDamaged, true), want)
	expectEqual(t, judge(stale, CheckpointReady, false), want) // it is not ready any more
	want.Status = CheckpointDeleting
	must(t, db.UpdateCheckpoint(ctx, &want))
	expectEqual(t, judge(stale, CheckpointDamaged, false), want)
	must(t, db.DeleteCheckpointRow(ctx, c.ID))
	changed, err := db.JudgeCheckpoint(ctx, c, CheckpointDamaged, "why")
	must(t, err)
	expectEqual(t, changed, false)
}
