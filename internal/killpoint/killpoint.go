// SPDX-License-Identifier: Apache-2.0

// Package killpoint lets a test end the server at a named point of its work, as
// kill -9 does.
//
// The points are the moments between two steps of a verb at which a crash leaves
// something half made: a moment taken at random finds the short ones hardly ever.
// A server that has the name of a file in its environment ends at the point that
// the file holds by the time it gets there, so that a test can choose one while
// the server runs; for all others a point costs one comparison.
package killpoint

import (
	"os"
	"syscall"
)

// Env is the environment variable that names the file, which need not be there.
const Env = "OC_KILL_AT"

// Point names a point: the verb that gets there, and after what.
type Point string

// The points of each verb, in the order in which it gets there.
const (
	CreateRow     Point = "create: row"
	CreateChannel Point = "create: channel"
	CreateStarted Point = "create: started"
	CreateEntered Point = "create: entered"

	CheckpointRow      Point = "checkpoint: row"
	CheckpointCaptured Point = "checkpoint: captured"
	CheckpointStored   Point = "checkpoint: stored"
	CheckpointReady    Point = "checkpoint: ready"

	RestoreRestored  Point = "restore: restored"
	RestoreHeld      Point = "restore: held"
	RestoreFrozen    Point = "restore: frozen"
	RestoreCommitted Point = "restore: committed"
	RestoreKept      Point = "restore: kept"
	RestoreResumed   Point = "restore: resumed"
	RestoreSaved     Point = "restore: saved"

	SpawnPlanned  Point = "spawn: planned"
	SpawnRestored Point = "spawn: restored"
	SpawnEntered  Point = "spawn: entered"

	DeleteMarked    Point = "delete: marked"
	DeleteDiscarded Point = "delete: discarded"
)

// All are the points.
func All() []Point {
	return []Point{
		CreateRow, CreateChannel, CreateStarted, CreateEntered,
		CheckpointRow, CheckpointCaptured, CheckpointStored, CheckpointReady,
		RestoreRestored, RestoreHeld, RestoreFrozen, RestoreCommitted, RestoreKept, RestoreResumed, RestoreSaved,
		SpawnPlanned, SpawnRestored, SpawnEntered,
		DeleteMarked, DeleteDiscarded,
	}
}

var file = os.Getenv(Env)

// Here ends this process if the point was chosen.
func Here(p Point) {
	if file == "" {
		return
	}
	if chosen, err := os.ReadFile(file); err != nil || string(chosen) != string(p) {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // never fails
	select {}                                      // nothing more is done
}
