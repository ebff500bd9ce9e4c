// SPDX-License-Identifier: Apache-2.0

package checkpoint

// Retention says what happens to a sandbox's older checkpoints when one is made.
type Retention struct {
	Mode     string // "" or "none": nothing; "delete_oldest": they make room, after the new one is ready
	MaxCount int    // how many to keep; 0 = the limit of a sandbox
}

// CreateRequest says what checkpoint to make.
type CreateRequest struct {
	Name      string // unique among the sandbox's checkpoints that did not fail
	Kind      string // "" = full; full | disk_only
	Retention Retention
	NoWait    bool // return the processing row instead of waiting for ready
	// Progress, unless nil, is told the bytes of what is new that are stored, and
	// all, from any goroutine; 0 is not known. With it Create waits however long it takes.
	Progress func(done, total int64)
}

// SpawnRequest says what sandboxes to make of a checkpoint. Zero values mean
// defaults.
type SpawnRequest struct {
	Count      int    // 0 = 1
	Name       string // label; with a count above 1, "-1", "-2", … is put behind it
	TimeoutSec int    // rolling idle timeout in seconds; 0 = never
	Envs       map[string]string
	Metadata   map[string]string
	MemoryMB   int // at least the checkpoint's; 0 = the checkpoint's
	// Progress, unless nil, is told the bytes of what has to come to this machine
	// before it can begin, and all, by the caller's goroutine. A Fork has none.
	Progress func(done, total int64)
}

// The kinds of a Node.
const (
	NodeSandbox    = "sandbox"
	NodeCheckpoint = "checkpoint"
)

// Node is a sandbox or a checkpoint in the lineage.
type Node struct {
	Kind     string // NodeSandbox or NodeCheckpoint
	ID       string
	Name     string
	Status   string
	ParentID string // what it descends from; "" for a root
}
