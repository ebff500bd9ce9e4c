// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
)

// TestMemoryAndDiskAreOfTheSameInstant checkpoints a writer again and again. It
// counts in memory, in a file that it renames into place, in one that it
// overwrites, and in many small ones; in each clone these must agree.
func TestMemoryAndDiskAreOfTheSameInstant(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.push("writer.py")
	b.start("python3", "writer.py")
	await(t, "the writer writes", func() bool { return b.exec("test", "-s", "renamed").Code == 0 })
	for i := range count(5, 40) {
		cp := b.checkpoint(fmt.Sprintf("round %d", i))
		clone := spawn(t, shared, cp)
		// The writer checks, on this signal, that disk and memory agree.
		if got := clone.sh("kill -USR1 $(cat writer.pid); until [ -s verdict ]; do sleep 0.05; done; cat verdict"); got != "consistent" {
			t.Errorf("round %d: %s", i, got)
		}
		oc(t, shared, "kill", clone.id)
		oc(t, shared, "checkpoint", "delete", b.id, cp)
	}
}

// TestDatabaseUnderLoadIsConsistentInEveryClone checkpoints SQLite while it
// commits, and opens each clone's database as after a crash.
func TestDatabaseUnderLoadIsConsistentInEveryClone(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.push("database.py")
	b.push("dbcheck.py")
	b.start("python3", "database.py")
	await(t, "the database grows", func() bool { return b.exec("python3", "dbcheck.py").Code == 0 })
	for i := range count(3, 20) {
		cp := b.checkpoint(fmt.Sprintf("load %d", i))
		clone := spawn(t, shared, cp)
		if out := clone.exec("bash", "-c", "kill -9 $(cat database.pid) && python3 dbcheck.py"); out.Code != 0 {
			t.Errorf("clone %d: %s", i, out)
		}
		oc(t, shared, "kill", clone.id)
		oc(t, shared, "checkpoint", "delete", b.id, cp)
	}
	cp := b.checkpoint("last")
	b.restore(cp)
	if out := b.exec("bash", "-c", "kill -9 $(cat database.pid) && python3 dbcheck.py"); out.Code != 0 {
		t.Errorf("restored: %s", out)
	}
}
