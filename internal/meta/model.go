// SPDX-License-Identifier: Apache-2.0

package meta

import "time"

// The row types below are stored as they are: one table for each, named by its
// plural, one column for each field, named in snake case. A new field needs a
// migration.

// SandboxState is the life-cycle state of a sandbox.
type SandboxState string

// The states. A row exists before anything of the sandbox does.
const (
	SandboxPending SandboxState = "pending" // being created; not shown to clients
	SandboxRunning SandboxState = "running"
	SandboxStopped SandboxState = "stopped" // ended for good; its checkpoints stay
	SandboxError   SandboxState = "error"   // its engine died or its load failed; Reason says why
)

// Org owns sandboxes, checkpoints, templates and keys.
type Org struct {
	ID        string // org-<8 hex>
	Name      string // unique
	CreatedAt time.Time
}

// Key is an API key. Only its hash is stored.
type Key struct {
	ID        string // key-<8 hex>
	OrgID     string
	Name      string
	Prefix    string // first 12 characters, for display
	Hash      string // SHA-256, lower hex
	CreatedAt time.Time
	RevokedAt *time.Time
}

// Template names a root file system tree.
type Template struct {
	ID         string // tpl-<8 hex>
	OrgID      string // "" = visible to every org (built-in)
	Name       string
	Status     string // building | ready | failed
	ErrorMsg   string
	TreeHash   string
	SizeBytes  int64
	CreatedAt  time.Time
	LastUsedAt *time.Time
}

// Sandbox is an isolated machine.
type Sandbox struct {
	ID             string // sb-<8 hex>
	OrgID          string
	Name           string // optional label
	Template       string // template name at creation
	State          SandboxState
	Reason         string // why it is stopped or in error
	GenerationID   string // the run that is the sandbox now; "" when there is none
	FromCheckpoint string // the checkpoint it was spawned from
	LastCheckpoint string // what its state descends from: the parent of its next checkpoint
	CPUs           int    `bun:"cpus"`
	MemoryMB       int
	DiskMB         int
	TimeoutSec     int // rolling idle timeout, 0 = never
	Envs           map[string]string
	Metadata       map[string]string
	CreatedAt      time.Time
	StartedAt      time.Time
	LastActiveAt   time.Time // start of the rolling timeout
	StoppedAt      *time.Time
}

// GenerationState is the state of one run of a sandbox by the engine.
type GenerationState string

// The states of a generation.
const (
	GenerationStarting GenerationState = "starting" // row exists, process may
	GenerationLive     GenerationState = "live"     // is, or may become, the sandbox
	GenerationHeld     GenerationState = "held"     // is the sandbox, but is not known to have been let go on
	GenerationFreezing GenerationState = "freezing" // is the sandbox, and is being frozen to be replaced; who freezes it lets it go on
	GenerationSaving   GenerationState = "saving"   // was replaced, and stays frozen until its state is stored
	GenerationEnding   GenerationState = "ending"   // to be destroyed by whoever finds it
)

// Generation is one run of a sandbox by the engine: the record by which its
// process, cgroup, socket and directory are found again.
type Generation struct {
	ID         string // gn-<8 hex>
	SandboxID  string `bun:",nullzero"` // "" while it is no sandbox's
	State      GenerationState
	Build      string // sha256 of the kept oc build that the engine runs from
	Process    []byte // engine's record of its process (JSON, opaque here)
	ImageHash  string // EROFS image it runs on
	Checkpoint string // checkpoint it was restored from, "" for a fresh one
	Timeline   string // tl-<8 hex>
	Pager      []byte // record of the pager that loads it (JSON), nil when fully loaded
	CPUs       int    `bun:"cpus"`
	MemoryMB   int
	DiskMB     int
	CreatedAt  time.Time
}

// CheckpointStatus is the status of a checkpoint.
type CheckpointStatus string

// The statuses. Ready is set by the component that verified the artefact.
const (
	CheckpointProcessing CheckpointStatus = "processing"
	CheckpointReady      CheckpointStatus = "ready"
	CheckpointFailed     CheckpointStatus = "failed"
	CheckpointDamaged    CheckpointStatus = "damaged"  // was ready, cannot be read now; a repair may make it ready again
	CheckpointDeleting   CheckpointStatus = "deleting" // hidden; its bytes are being removed
)

// Checkpoint is the immutable full state of a sandbox at one instant.
type Checkpoint struct {
	ID         string // cp-<8 hex>
	OrgID      string
	SandboxID  string // the sandbox it was taken of
	Name       string
	Kind       string // full | disk_only
	Status     CheckpointStatus
	ErrorMsg   string
	Automatic  bool   // made by the server (expired-…, before-restore-…): outside the limit
	Unverified bool   // taken without the agent's help, of a sandbox that was not well
	ParentID   string // checkpoint this state descends from, "" for none
	SizeBytes  int64  // logical size of the state
	AddedBytes int64  // bytes this checkpoint added to the store
	Object     string // id of its object in the store; "" for one of the first format
	Template   string
	TreeHash   string
	ImageHash  string
	Build      string // engine build that wrote it
	CPUs       int    `bun:"cpus"`
	MemoryMB   int
	DiskMB     int
	Envs       map[string]string
	CreatedAt  time.Time
	ReadyAt    *time.Time
	FailedAt   *time.Time
}

// Image records an EROFS image built from (tree, agent).
type Image struct {
	Hash      string `bun:",pk"` // sha256 of the file
	TreeHash  string
	AgentHash string
	SizeBytes int64
	CreatedAt time.Time
}
