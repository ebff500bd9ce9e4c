// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

// database is one that starts empty.
type database struct{ dsn string }

// open opens one more handle on it, closed with the test.
func (d database) open(t *testing.T) *DB {
	t.Helper()
	db, err := Open(t.Context(), d.dsn, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}

// suite is what every kind of database must pass. fresh makes an empty one.
func suite(t *testing.T, fresh func(t *testing.T) database) {
	tests := []struct {
		name string
		run  func(t *testing.T, d database)
	}{
		{"Keys", testKeys},
		{"KeyErrors", testKeyErrors},
		{"OrgsAtOnce", testOrgsAtOnce},
		{"SandboxRoundTrip", testSandboxRoundTrip},
		{"SandboxLists", testSandboxLists},
		{"SandboxUpdates", testSandboxUpdates},
		{"HostileText", testHostileText},
		{"Generations", testGenerations},
		{"References", testReferences},
		{"CheckpointRoundTrip", testCheckpointRoundTrip},
		{"CheckpointNames", testCheckpointNames},
		{"CheckpointLimit", testCheckpointLimit},
		{"CheckpointLimitAtOnce", testCheckpointLimitAtOnce},
		{"CheckpointNameAtOnce", testCheckpointNameAtOnce},
		{"CheckpointDeleting", testCheckpointDeleting},
		{"CheckpointJudged", testCheckpointJudged},
		{"ForeignOrg", testForeignOrg},
		{"Templates", testTemplates},
		{"Images", testImages},
		{"Use", testUse},
		{"Transactions", testTransactions},
		{"TakenIDs", testTakenIDs},
		{"HandlesAtOnce", testHandlesAtOnce},
		{"OpensAtOnce", testOpensAtOnce},
		{"NewerSchema", testNewerSchema},
		{"Cancelled", testCancelled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.run(t, fresh(t))
		})
	}
}

// start is what the clock of a test shows first.
var start = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("east", 2*3600))

// withClock has db stamp rows one second after the other.
func withClock(db *DB) *DB {
	now := start
	db.now = func() time.Time {
		now = now.Add(time.Second)
		return now
	}
	return db
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// expectFault sees that err is a fault of the kind with exactly the message.
func expectFault(t *testing.T, err error, kind fault.Kind, message string) {
	t.Helper()
	var f *fault.Fault
	if !errors.As(err, &f) || f.Kind != kind || f.Message != message {
		t.Fatalf("error %v; want a fault %s %q", err, kind, message)
	}
}

func expectEqual[T any](t *testing.T, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// ids gives a field of each row, for short comparisons.
func ids[T any](rows []T, id func(T) string) []string {
	out := []string{}
	for _, r := range rows {
		out = append(out, id(r))
	}
	return out
}

func sandboxID(s Sandbox) string       { return s.ID }
func checkpointID(c Checkpoint) string { return c.ID }

func newOrg(t *testing.T, db *DB, name string) Org {
	t.Helper()
	org, err := db.EnsureOrg(t.Context(), name)
	must(t, err)
	return org
}

func newSandbox(t *testing.T, db *DB, orgID string) Sandbox {
	t.Helper()
	s := Sandbox{OrgID: orgID, Template: "base", State: SandboxRunning}
	must(t, db.InsertSandbox(t.Context(), &s))
	return s
}

func newCheckpoint(t *testing.T, db *DB, s Sandbox, name string, st CheckpointStatus) Checkpoint {
	t.Helper()
	c := Checkpoint{OrgID: s.OrgID, SandboxID: s.ID, Name: name, Kind: "full", Status: st}
	must(t, db.InsertCheckpoint(t.Context(), &c, 0))
	return c
}

func testTransactions(t *testing.T, d database) {
	db := d.open(t)
	org := newOrg(t, db, "a")
	undone := errors.New("undone")
	err := db.InTx(t.Context(), func(tx *DB) error {
		s := Sandbox{OrgID: org.ID}
		if err := tx.InsertSandbox(t.Context(), &s); err != nil {
			return err
		}
		if _, err := tx.Sandbox(t.Context(), org.ID, s.ID); err != nil {
			return err // what it wrote it must see
		}
		if err := tx.Close(); err == nil {
			t.Error("a transaction could be closed")
		}
		return undone
	})
	if !errors.Is(err, undone) {
		t.Fatalf("InTx: %v", err)
	}
	rows, err := db.SandboxesAnyOrg(t.Context())
	must(t, err)
	expectEqual(t, rows, []Sandbox{})

	// A transaction in a transaction is part of it.
	err = db.InTx(t.Context(), func(tx *DB) error {
		return tx.InTx(t.Context(), func(tx *DB) error {
			return tx.InsertSandbox(t.Context(), &Sandbox{OrgID: org.ID})
		})
	})
	must(t, err)
	rows, err = db.SandboxesAnyOrg(t.Context())
	must(t, err)
	expectEqual(t, len(rows), 1)

	// A panic leaves nothing behind and no lock.
	func() {
		defer func() { _ = recover() }()
		_ = db.InTx(t.Context(), func(tx *DB) error {
			_ = tx.InsertSandbox(t.Context(), &Sandbox{OrgID: org.ID})
			panic("in the middle")
		})
	}()
	newSandbox(t, db, org.ID)
	rows, err = db.SandboxesAnyOrg(t.Context())
	must(t, err)
	expectEqual(t, len(rows), 2)
}

func testTakenIDs(t *testing.T, d database) {
	db := d.open(t)
	org := newOrg(t, db, "a")
	s := newSandbox(t, db, org.ID)
	again := Sandbox{ID: s.ID, OrgID: org.ID}
	expectFault(t, db.InsertSandbox(t.Context(), &again), fault.Conflict, "id "+s.ID+" is taken")

	// A taken id does not end a transaction.
	err := db.InTx(t.Context(), func(tx *DB) error {
		if err := tx.InsertSandbox(t.Context(), &again); !fault.Is(err, fault.Conflict) {
			t.Errorf("insert: %v", err)
		}
		return tx.InsertSandbox(t.Context(), &Sandbox{OrgID: org.ID})
	})
	must(t, err)
}

func testCancelled(t *testing.T, d database) {
	db := d.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := db.Orgs(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if err := db.InTx(ctx, func(*DB) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("transaction: %v", err)
	}
	newOrg(t, db, "after")
}
