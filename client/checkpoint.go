// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"net/url"
	"time"
)

// waitPoll is how often WaitCheckpoint asks.
const waitPoll = 300 * time.Millisecond

// The statuses of a checkpoint.
const (
	CheckpointProcessing = "processing"
	CheckpointReady      = "ready"
	CheckpointFailed     = "failed"
)

// Checkpoint is the immutable state of a sandbox at one instant.
type Checkpoint struct {
	ID            string         `json:"id" doc:"cp- and eight hexadecimal digits"`
	SandboxID     string         `json:"sandboxId"`
	OrgID         string         `json:"orgId"`
	Name          string         `json:"name"`
	SandboxConfig map[string]any `json:"sandboxConfig" doc:"Shape of the sandbox: template, cpuCount, memoryMB, diskMB"`
	Kind          string         `json:"kind" doc:"full or disk_only"`
	Status        string         `json:"status" doc:"processing, ready or failed"`
	Damaged       bool           `json:"damaged,omitempty" doc:"It was ready, and cannot be read any more; the status is failed"`
	Unverified    bool           `json:"unverified,omitempty" doc:"Taken without the agent's help, of a sandbox that was not well"`
	ParentID      string         `json:"parentId,omitempty" doc:"Checkpoint that this state descends from"`
	Automatic     bool           `json:"automatic,omitempty" doc:"Made by the server itself"`
	SizeBytes     int64          `json:"sizeBytes" doc:"Logical size of the state"`
	AddedBytes    int64          `json:"addedBytes" doc:"What it added to the store"`
	IsPublic      bool           `json:"isPublic"`
	CreatedAt     time.Time      `json:"createdAt"`
	ErrorMsg      string         `json:"errorMsg,omitempty" doc:"Why it failed"`
	FailedAt      *time.Time     `json:"failedAt,omitempty"`
}

// RetentionPolicy says what happens to old checkpoints when one is made.
type RetentionPolicy struct {
	Mode     string `json:"mode" doc:"none or delete_oldest"`
	MaxCount int    `json:"maxCount,omitempty" doc:"How many to keep; 0 = the limit"`
}

// CreateCheckpointRequest says what checkpoint to make.
type CreateCheckpointRequest struct {
	Name            string           `json:"name" doc:"Unique among the sandbox's checkpoints"`
	Kind            string           `json:"kind,omitempty" doc:"full (default) or disk_only"`
	PromoteToFull   *bool            `json:"promoteToFull,omitempty" doc:"Make a full checkpoint of a disk_only one, in the background"`
	RetentionPolicy *RetentionPolicy `json:"retentionPolicy,omitempty"`
	NoWait          bool             `json:"noWait,omitempty" doc:"Return while it is still processing"`
}

// CreateCheckpoint makes a checkpoint of a running sandbox, which goes on
// running. It returns when the checkpoint is ready, or with status processing
// if the server's bound (or NoWait) came first.
func (c *Client) CreateCheckpoint(ctx context.Context, sandboxID string, req CreateCheckpointRequest) (Checkpoint, error) {
	var cp Checkpoint
	return cp, c.call(ctx, "POST", path("sandboxes", sandboxID, "checkpoints"), req, &cp)
}

// CreateCheckpointWatched is CreateCheckpoint for who watches: progress is given
// the bytes of what is new that are stored, and all, 0 as long as that is not
// known; and unless NoWait is asked for it waits until the checkpoint is ready,
// however long that takes.
func (c *Client) CreateCheckpointWatched(ctx context.Context, sandboxID string, req CreateCheckpointRequest, progress func(done, total int64)) (Checkpoint, error) {
	return progressCall[Checkpoint](ctx, c, path("sandboxes", sandboxID, "checkpoints"), req, watcher{count: progress})
}

// ListCheckpoints gives a sandbox's checkpoints, newest first, also those of one
// that is stopped.
func (c *Client) ListCheckpoints(ctx context.Context, sandboxID string) ([]Checkpoint, error) {
	var out []Checkpoint
	return out, c.call(ctx, "GET", path("sandboxes", sandboxID, "checkpoints"), nil, &out)
}

// GetCheckpoint gives one checkpoint.
func (c *Client) GetCheckpoint(ctx context.Context, checkpointID string) (Checkpoint, error) {
	var cp Checkpoint
	return cp, c.call(ctx, "GET", path("checkpoints", checkpointID), nil, &cp)
}

// WaitCheckpoint waits until a checkpoint is ready or failed, and gives it as it
// is then. That it failed is not an error of the call.
func (c *Client) WaitCheckpoint(ctx context.Context, checkpointID string) (Checkpoint, error) {
	for {
		cp, err := c.GetCheckpoint(ctx, checkpointID)
		if err != nil || cp.Status != CheckpointProcessing {
			return cp, err
		}
		select {
		case <-time.After(waitPoll):
		case <-ctx.Done():
			return cp, ctx.Err()
		}
	}
}

// RestoreRequest says how to restore.
type RestoreRequest struct {
	NoSave bool `json:"noSave,omitempty" doc:"Lose the present state instead of keeping it as an automatic checkpoint"`
}

// RestoreResult answers a restore. All values are strings: released clients
// decode a map of strings.
type RestoreResult struct {
	SandboxID    string `json:"sandboxId"`
	CheckpointID string `json:"checkpointId"`
	Status       string `json:"status" doc:"restored"`
	// SavedCheckpointID is the automatic checkpoint of the state before.
	SavedCheckpointID string `json:"savedCheckpointId,omitempty"`
	Note              string `json:"note,omitempty" doc:"What is special about the saved state, or why there is none"`
}

// RestoreCheckpoint puts a sandbox back to a checkpoint, its own or another of
// the org, and returns when it runs there and its state before is kept.
func (c *Client) RestoreCheckpoint(ctx context.Context, sandboxID, checkpointID string, req RestoreRequest) (RestoreResult, error) {
	var res RestoreResult
	return res, c.call(ctx, "POST", path("sandboxes", sandboxID, "checkpoints", checkpointID, "restore"), req, &res)
}

// SpawnRequest says what sandboxes to make of a checkpoint.
type SpawnRequest struct {
	Count    int               `json:"count,omitempty" doc:"How many, at most 100; 0 = 1"`
	Name     string            `json:"name,omitempty" doc:"Label; with a count above 1 each gets -1, -2, … behind it"`
	Timeout  int               `json:"timeout,omitempty" doc:"Rolling idle timeout in seconds, 0 = never"`
	Envs     map[string]string `json:"envs,omitempty" doc:"Laid over those of the checkpoint"`
	Metadata map[string]string `json:"metadata,omitempty"`
	MemoryMB int               `json:"memoryMB,omitempty" doc:"At least the checkpoint's"`
}

// SpawnResult is the first new sandbox, and all of them if more than one was
// asked for.
type SpawnResult struct {
	Sandbox
	Sandboxes []Sandbox `json:"sandboxes,omitempty"`
}

// All gives the new sandboxes, however many there are.
func (r SpawnResult) All() []Sandbox {
	if len(r.Sandboxes) > 0 {
		return r.Sandboxes
	}
	return []Sandbox{r.Sandbox}
}

// SpawnCheckpoint makes new sandboxes that go on from a checkpoint.
func (c *Client) SpawnCheckpoint(ctx context.Context, checkpointID string, req SpawnRequest) (SpawnResult, error) {
	var res SpawnResult
	return res, c.call(ctx, "POST", path("sandboxes", "from-checkpoint", checkpointID), req, &res)
}

// SpawnCheckpointWatched is SpawnCheckpoint for who watches: progress is given the
// bytes of what the server has to fetch before it can begin, and all.
func (c *Client) SpawnCheckpointWatched(ctx context.Context, checkpointID string, req SpawnRequest, progress func(done, total int64)) (SpawnResult, error) {
	return progressCall[SpawnResult](ctx, c, path("sandboxes", "from-checkpoint", checkpointID), req, watcher{count: progress})
}

// ForkResult is the checkpoint that a fork made and the sandboxes made of it.
type ForkResult struct {
	Checkpoint Checkpoint `json:"checkpoint"`
	Sandboxes  []Sandbox  `json:"sandboxes"`
}

// ForkSandbox makes a checkpoint of a running sandbox and new sandboxes of it.
func (c *Client) ForkSandbox(ctx context.Context, sandboxID string, req SpawnRequest) (ForkResult, error) {
	var res ForkResult
	return res, c.call(ctx, "POST", path("sandboxes", sandboxID, "fork"), req, &res)
}

// DeleteCheckpoint removes a checkpoint; sandboxes made of it stay.
func (c *Client) DeleteCheckpoint(ctx context.Context, sandboxID, checkpointID string) error {
	return c.call(ctx, "DELETE", path("sandboxes", sandboxID, "checkpoints", checkpointID), nil, nil)
}

// TreeNode is a sandbox or a checkpoint in the lineage.
type TreeNode struct {
	Kind     string `json:"kind" doc:"sandbox or checkpoint"`
	ID       string `json:"id"`
	Name     string `json:"name,omitempty"`
	Status   string `json:"status"`
	ParentID string `json:"parentId,omitempty" doc:"What it descends from: a checkpoint's is the checkpoint before it or its sandbox, a sandbox's the checkpoint it came from"`
}

// CheckpointTree gives the lineage of a sandbox, or of everything with an empty
// id. A parent comes before its children.
func (c *Client) CheckpointTree(ctx context.Context, sandboxID string) ([]TreeNode, error) {
	p := "/checkpoints/tree"
	if sandboxID != "" {
		p += "?sandbox=" + url.QueryEscape(sandboxID)
	}
	var out []TreeNode
	return out, c.call(ctx, "GET", p, nil, &out)
}
