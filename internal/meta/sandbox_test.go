// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

// at is a time as rows hold it.
func at(seconds int) time.Time {
	return start.UTC().Truncate(time.Microsecond).Add(time.Duration(seconds) * time.Second)
}

func testSandboxRoundTrip(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	org := newOrg(t, db, "a")
	stopped := at(9)
	full := Sandbox{
		OrgID: org.ID, Name: "n", Template: "base", State: SandboxError, Reason: "why",
		GenerationID: "gn-1", FromCheckpoint: "cp-1", LastCheckpoint: "cp-2",
		CPUs: 2, MemoryMB: 4096, DiskMB: 20480, TimeoutSec: 300,
		Envs:     map[string]string{"A": "1", "quo'te": `"x"`, "line": "a\nb"},
		Metadata: map[string]string{}, CreatedAt: at(0), StartedAt: at(1), LastActiveAt: at(2), StoppedAt: &stopped,
	}
	must(t, db.InsertSandbox(ctx, &full))
	got, err := db.Sandbox(ctx, org.ID, full.ID)
	must(t, err)
	expectEqual(t, got, full)
	if got.CreatedAt.Location() != time.UTC || got.StoppedAt.Location() != time.UTC {
		t.Errorf("times in %v and %v", got.CreatedAt.Location(), got.StoppedAt.Location())
	}

	// Nothing but an owner: stamped, and empty maps stay usable.
	db = withClock(db)
	empty := Sandbox{OrgID: org.ID}
	must(t, db.InsertSandbox(ctx, &empty))
	got, err = db.SandboxAnyOrg(ctx, empty.ID)
	must(t, err)
	expectEqual(t, got.CreatedAt, at(1))
	expectEqual(t, got.LastActiveAt, at(1))
	if len(got.Envs) != 0 || !got.StartedAt.IsZero() || got.StoppedAt != nil {
		t.Errorf("empty row %+v", got)
	}
}

func testSandboxLists(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	org, other := newOrg(t, db, "a"), newOrg(t, db, "b")
	want := map[SandboxState]string{}
	for i, state := range []SandboxState{SandboxRunning, SandboxPending, SandboxStopped, SandboxError} {
		// Fractions of different length must sort as times do.
		s := Sandbox{OrgID: org.ID, State: state, CreatedAt: at(0).Add(time.Duration(i) * 100 * time.Millisecond)}
		must(t, db.InsertSandbox(ctx, &s))
		want[state] = s.ID
	}
	newSandbox(t, db, other.ID)
	tests := []struct {
		name   string
		filter SandboxFilter
		want   []SandboxState
	}{
		{"default", SandboxFilter{}, []SandboxState{SandboxError, SandboxStopped, SandboxRunning}},
		{"limit", SandboxFilter{Limit: 2}, []SandboxState{SandboxError, SandboxStopped}},
		{"states", SandboxFilter{States: []SandboxState{SandboxRunning, SandboxPending}}, []SandboxState{SandboxPending, SandboxRunning}},
	}
	for _, tt := range tests {
		rows, err := db.Sandboxes(ctx, org.ID, tt.filter)
		must(t, err)
		wantIDs := ids(tt.want, func(s SandboxState) string { return want[s] })
		expectEqual(t, ids(rows, sandboxID), wantIDs)
	}
	rows, err := db.SandboxesAnyOrg(ctx)
	must(t, err)
	expectEqual(t, len(rows), 5)
	rows, err = db.SandboxesAnyOrg(ctx, SandboxRunning)
	must(t, err)
	expectEqual(t, len(rows), 2)
	rows, err = db.Sandboxes(ctx, "org-none", SandboxFilter{})
	must(t, err)
	expectEqual(t, rows, []Sandbox{})
}

// testSandboxUpdates has an operation hold an old copy of the row while others
// write theirs: nobody's change is lost.
func testSandboxUpdates(t *testing.T, d database) {
	db := withClock(d.open(t))
	ctx := t.Context()
	org := newOrg(t, db, "a")
	old := newSandbox(t, db, org.ID)

	must(t, db.SetSandboxTimeout(ctx, old.ID, 60))
	must(t, db.TouchSandbox(ctx, old.ID, at(100)))
	old.State, old.Reason, old.LastCheckpoint = SandboxStopped, "killed", "cp-9"
	must(t, db.UpdateSandbox(ctx, &old))
	got, err := db.Sandbox(ctx, org.ID, old.ID)
	must(t, err)
	old.TimeoutSec, old.LastActiveAt = 60, at(100)
	got.Envs, got.Metadata = nil, nil
	expectEqual(t, got, old)

	must(t, db.TouchSandbox(ctx, old.ID, at(50)))
	got, err = db.Sandbox(ctx, org.ID, old.ID)
	must(t, err)
	expectEqual(t, got.LastActiveAt, at(100))
	got.LastActiveAt = at(100).Add(time.Microsecond)
	must(t, db.UpdateSandbox(ctx, &got))
	got, err = db.Sandbox(ctx, org.ID, old.ID)
	must(t, err)
	expectEqual(t, got.LastActiveAt, at(100).Add(time.Microsecond))

	none := Sandbox{ID: "sb-none", OrgID: org.ID}
	for _, err := range []error{
		db.UpdateSandbox(ctx, &none), db.TouchSandbox(ctx, none.ID, at(0)), db.SetSandboxTimeout(ctx, none.ID, 1),
	} {
		expectFault(t, err, fault.NotFound, "sandbox not found")
	}
}

// testHostileText stores what a user could send to break out of a statement.
func testHostileText(t *testing.T, d database) {
	db := d.open(t)
	org := newOrg(t, db, `o'); DROP TABLE orgs; --`)
	for _, text := range []string{
		`'; DROP TABLE sandboxes; --`, `\'`, `''`, `?`, `?0 ?1`, `$1`, `"`, "`", `{}`, "ü\n\t", `\x41`, "a;b", `%s`,
	} {
		s := Sandbox{
			OrgID: org.ID, Name: text, Reason: text,
			Envs: map[string]string{text: text}, Metadata: map[string]string{text: text}, CreatedAt: at(0),
			StartedAt: at(0), LastActiveAt: at(0),
		}
		must(t, db.InsertSandbox(t.Context(), &s))
		got, err := db.Sandbox(t.Context(), org.ID, s.ID)
		must(t, err)
		expectEqual(t, got, s)
		got.Name += text
		must(t, db.UpdateSandbox(t.Context(), &got))
		_, err = db.Sandbox(t.Context(), org.ID, text)
		expectFault(t, err, fault.NotFound, "sandbox not found")
	}
	// No database keeps a NUL in text. It is refused, not cut off.
	if err := db.InsertSandbox(t.Context(), &Sandbox{OrgID: org.ID, Name: "a\x00b"}); err == nil {
		t.Error("a name with a NUL was stored")
	}
}

func testGenerations(t *testing.T, d database) {
	db := withClock(d.open(t))
	ctx := t.Context()
	org := newOrg(t, db, "a")
	s := newSandbox(t, db, org.ID)
	g := Generation{
		SandboxID: s.ID, State: GenerationStarting, Build: "b", Process: []byte(`{"pid":1,"x":"'"}`), ImageHash: "i",
		Checkpoint: "cp-1", Timeline: "tl-1", Pager: []byte{0, 1, 255}, CPUs: 1, MemoryMB: 2, DiskMB: 3,
	}
	must(t, db.InsertGeneration(ctx, &g))
	got, err := db.Generation(ctx, g.ID)
	must(t, err)
	expectEqual(t, got, g)

	g.State, g.Pager, g.Process = GenerationLive, nil, nil
	must(t, db.UpdateGeneration(ctx, &g))
	got, err = db.Generation(ctx, g.ID)
	must(t, err)
	expectEqual(t, got, g)

	spare := Generation{State: GenerationStarting} // no sandbox's yet
	must(t, db.InsertGeneration(ctx, &spare))
	all, err := db.Generations(ctx)
	must(t, err)
	expectEqual(t, all, []Generation{g, spare})
	of, err := db.GenerationsOf(ctx, s.ID)
	must(t, err)
	expectEqual(t, of, []Generation{g})

	must(t, db.DeleteGeneration(ctx, g.ID))
	must(t, db.DeleteGeneration(ctx, g.ID))
	_, err = db.Generation(ctx, g.ID)
	expectFault(t, err, fault.NotFound, "generation not found")
	expectFault(t, db.UpdateGeneration(ctx, &g), fault.NotFound, "generation not found")
}

// testReferences sees that a row does not go before what depends on it.
func testReferences(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	org := newOrg(t, db, "a")
	s := newSandbox(t, db, org.ID)
	g := Generation{SandboxID: s.ID}
	must(t, db.InsertGeneration(ctx, &g))
	expectFault(t, db.DeleteSandboxRow(ctx, s.ID), fault.Conflict, "sandbox "+s.ID+" is still referred to")
	must(t, db.DeleteGeneration(ctx, g.ID))
	must(t, db.DeleteSandboxRow(ctx, s.ID))
	must(t, db.DeleteSandboxRow(ctx, s.ID))
	if err := db.InsertGeneration(ctx, &Generation{SandboxID: s.ID}); err == nil {
		t.Error("a generation of a sandbox that does not exist was recorded")
	}
	if err := db.InsertSandbox(ctx, &Sandbox{OrgID: "org-none"}); err == nil {
		t.Error("a sandbox of an org that does not exist was recorded")
	}
}
