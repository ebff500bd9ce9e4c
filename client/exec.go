// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
)

// ExecRequest says what to run in a sandbox.
type ExecRequest struct {
	// Cmd is the program. In a run, a Cmd without Args is a shell command line;
	// a session is always executed directly.
	Cmd     string            `json:"cmd"`
	Args    []string          `json:"args,omitempty"`
	Envs    map[string]string `json:"envs,omitempty" doc:"Laid over the sandbox's"`
	Cwd     string            `json:"cwd,omitempty" doc:"Default: the user's home"`
	User    string            `json:"user,omitempty" doc:"Default: sandbox, or root where there is no such user"`
	Timeout int               `json:"timeout,omitempty" doc:"Seconds; 0 = none for a session, 60 for a run"`
	// Detach says that nobody will attach soon. Otherwise a session's output
	// waits for the first attach, for half a minute at most.
	Detach bool `json:"detach,omitempty" doc:"Nobody attaches soon: of much output keep the newest, instead of waiting for a reader"`
	// Key makes a start happen once however often it is sent: a second one with
	// the same key answers with the first one's session.
	Key string `json:"key,omitempty" doc:"Unique key of the caller's that makes the call idempotent"`
}

// ExecSession is a process that was started in a sandbox.
type ExecSession struct {
	SessionID       string   `json:"sessionID"`
	SandboxID       string   `json:"sandboxID"`
	Command         string   `json:"command"`
	Args            []string `json:"args"`
	Running         bool     `json:"running"`
	ExitCode        *int     `json:"exitCode,omitempty"`
	StartedAt       string   `json:"startedAt" doc:"RFC 3339"`
	AttachedClients int      `json:"attachedClients"`
	TTY             bool     `json:"tty,omitempty"`
	Timeline        string   `json:"timeline,omitempty" doc:"History that its output offsets count in"`
}

// ExecResult is what a run printed and how it ended.
type ExecResult struct {
	ExitCode  int    `json:"exitCode" doc:"-1 = timed out"`
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
	Truncated bool   `json:"truncated,omitempty" doc:"Older output was dropped"`
}

// AsyncRun answers a run-async that has not finished yet, and asks for its result.
type AsyncRun struct {
	ExecID    string `json:"execId,omitempty"`
	Running   bool   `json:"running"`
	StartedAt string `json:"startedAt,omitempty"`
	ExitCode  *int   `json:"exitCode,omitempty"`
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
	Truncated bool   `json:"truncated,omitempty"`
	Error     string `json:"error,omitempty"`
}

// KillRequest says which signal to send; 0 means 9.
type KillRequest struct {
	Signal int `json:"signal,omitempty"`
}

// KillResult says what a signal met.
type KillResult struct {
	Ended bool `json:"ended,omitempty" doc:"The session had ended: nothing was sent"`
}

// StartExec starts a program as a session that lives on without a client.
func (c *Client) StartExec(ctx context.Context, sandboxID string, req ExecRequest) (ExecSession, error) {
	var s ExecSession
	return s, c.call(ctx, "POST", path("sandboxes", sandboxID, "exec"), req, &s)
}

// ListExec gives a sandbox's sessions, with those that ended lately.
func (c *Client) ListExec(ctx context.Context, sandboxID string) ([]ExecSession, error) {
	var out []ExecSession
	return out, c.call(ctx, "GET", path("sandboxes", sandboxID, "exec"), nil, &out)
}

// KillExec sends a signal to a session's process group; signal 0 means 9. That
// the session has ended is no error.
func (c *Client) KillExec(ctx context.Context, sandboxID, sessionID string, signal int) (KillResult, error) {
	var res KillResult
	return res, c.call(ctx, "POST", path("sandboxes", sandboxID, "exec", sessionID, "kill"), KillRequest{Signal: signal}, &res)
}

// RunExec runs a program without input to its end and gives all it printed.
func (c *Client) RunExec(ctx context.Context, sandboxID string, req ExecRequest) (ExecResult, error) {
	var res ExecResult
	return res, c.call(ctx, "POST", path("sandboxes", sandboxID, "exec", "run"), req, &res)
}
