// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"time"
)

// The states of a sandbox that a client can see.
const (
	StatusRunning = "running"
	StatusStopped = "stopped"
	StatusError   = "error"
)

// Sandbox is an isolated machine.
type Sandbox struct {
	ID               string            `json:"id" doc:"Same as sandboxID"`
	SandboxID        string            `json:"sandboxID" doc:"sb- and eight hexadecimal digits"`
	Name             string            `json:"name,omitempty" doc:"Label given at creation"`
	Status           string            `json:"status" doc:"running, stopped or error"`
	Reason           string            `json:"reason,omitempty" doc:"Why it is stopped or in error"`
	TemplateID       string            `json:"templateID" doc:"Name of the template it was made from"`
	Template         string            `json:"template" doc:"Same as templateID"`
	Region           string            `json:"region"`
	WorkerID         string            `json:"workerID"`
	Token            string            `json:"token" doc:"Always empty"`
	StartedAt        time.Time         `json:"startedAt"`
	EndAt            time.Time         `json:"endAt" doc:"When it will be stopped if nobody uses it, or was stopped; year 1 = never"`
	Timeout          int               `json:"timeout" doc:"Rolling idle timeout in seconds, 0 = never"`
	CPUCount         int               `json:"cpuCount"`
	MemoryMB         int               `json:"memoryMB"`
	DiskMB           int               `json:"diskMB"`
	Metadata         map[string]string `json:"metadata"`
	FromCheckpointID string            `json:"fromCheckpointId,omitempty" doc:"Checkpoint it was spawned from"`
}

// CreateSandboxRequest says what a new sandbox shall be. Everything is optional.
type CreateSandboxRequest struct {
	TemplateID string            `json:"templateID,omitempty" doc:"Name of a template; empty, default, ubuntu, python and node mean base"`
	Template   string            `json:"template,omitempty" doc:"Same as templateID, which wins"`
	Name       string            `json:"name,omitempty" doc:"Label"`
	Alias      string            `json:"alias,omitempty" doc:"Same as name, which wins"`
	Timeout    int               `json:"timeout,omitempty" doc:"Rolling idle timeout in seconds, 0 = never"`
	CPUCount   int               `json:"cpuCount,omitempty" doc:"Number of CPUs"`
	MemoryMB   int               `json:"memoryMB,omitempty" doc:"Memory, at least 128"`
	DiskMB     int               `json:"diskMB,omitempty" doc:"Size limit of what it may write"`
	Envs       map[string]string `json:"envs,omitempty" doc:"Environment of every process in it"`
	Metadata   map[string]string `json:"metadata,omitempty" doc:"Free labels"`
}

// CreateSandbox makes a sandbox and returns when it runs. If it has to wait for
// a template to be built, progress (may be nil) is given lines for a person.
func (c *Client) CreateSandbox(ctx context.Context, req CreateSandboxRequest, progress func(string)) (Sandbox, error) {
	if progress == nil {
		var sb Sandbox
		return sb, c.call(ctx, "POST", "/sandboxes", req, &sb)
	}
	return progressCall[Sandbox](ctx, c, "/sandboxes", req, watcher{line: progress})
}

// ListSandboxes gives the sandboxes, newest first; all includes stopped ones.
func (c *Client) ListSandboxes(ctx context.Context, all bool) ([]Sandbox, error) {
	p := "/sandboxes"
	if all {
		p += "?all=1"
	}
	var out []Sandbox
	return out, c.call(ctx, "GET", p, nil, &out)
}

// GetSandbox gives one sandbox in whatever state it is.
func (c *Client) GetSandbox(ctx context.Context, id string) (Sandbox, error) {
	var sb Sandbox
	return sb, c.call(ctx, "GET", path("sandboxes", id), nil, &sb)
}

// KillSandbox ends a sandbox; its checkpoints stay. One that is stopped already
// is no error.
func (c *Client) KillSandbox(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", path("sandboxes", id), nil, nil)
}

// TimeoutRequest changes the rolling idle timeout.
type TimeoutRequest struct {
	Timeout int `json:"timeout" doc:"Seconds, 0 = never"`
}

// SetTimeout changes a sandbox's rolling idle timeout, in seconds; 0 = never.
func (c *Client) SetTimeout(ctx context.Context, id string, seconds int) error {
	return c.call(ctx, "POST", path("sandboxes", id, "timeout"), TimeoutRequest{Timeout: seconds}, nil)
}
