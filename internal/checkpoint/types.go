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
