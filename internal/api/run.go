// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/sandbox"
)

const (
	runTimeout = 60                     // seconds, of a run that names none
	maxCapture = 16 << 20               // bytes of output that a run gives back
	timedOut   = -1                     // exit code of a run that took too long
	asyncHold  = 400 * time.Millisecond // how long a run-async waits for the end
	asyncPoll  = 500 * time.Millisecond // how long a question for its result does
)

func (s *Server) runAsyncRoutes() {
	op := s.operation("POST /api/sandboxes/{id}/exec/run-async", "Run a program; 202 with an id if it takes longer", http.StatusOK)
	s.describeResult(&op, client.AsyncRun{})
	huma.Register(s.api, op, s.runAsync)
	typed(s, "GET /api/sandboxes/{id}/exec/{session}/result", "The result of a run-async", http.StatusOK, s.runResult)
}

// runOf says how to start a run: with a bound in time, its output kept by the
// agent. A command without arguments is a shell's line.
func runOf(b *client.ExecRequest) (wire.StartRequest, error) {
	if err := checkExec(b); err != nil {
		return wire.StartRequest{}, err
	}
	argv := append([]string{b.Cmd}, b.Args...)
	if len(b.Args) == 0 {
		argv = []string{"/bin/sh", "-c", b.Cmd}
	}
	timeout := b.Timeout
	if timeout == 0 {
		timeout = runTimeout
	}
	return wire.StartRequest{
		Key: first(b.Key, newID(16)), Argv: argv,
		Cwd: b.Cwd, User: b.User, Timeout: float64(timeout), Output: maxCapture, Hold: true,
	}, nil
}

// startRun starts a run, without input, that is followed later.
func (s *Server) startRun(ctx context.Context, sandboxID string, b *client.ExecRequest) (info wire.SessionInfo, err error) {
	req, err := runOf(b)
	if err != nil {
		return info, err
	}
	if info, err = s.startSession(ctx, sandboxID, req, b.Envs); err != nil {
		return info, err
	}
	err = s.withAgent(ctx, sandboxID, func(ctx context.Context, lease *sandbox.Lease) error {
		return lease.Agent.CloseStdin(ctx, info.ID)
	})
	if fault.Is(err, fault.NotFound) {
		err = errSessionLost
	}
	return info, err
}

func (s *Server) runExec(ctx context.Context, in *execInput) (client.ExecResult, error) {
	req, err := runOf(&in.Body)
	if err != nil {
		return client.ExecResult{}, err
	}
	c := &capture{}
	err = s.follow(ctx, &follower{sandboxID: in.ID, start: &starter{req: req, envs: in.Body.Envs}}, c)
	return c.result(), err
}

// collect follows a session that exists from its beginning to its end and gives what it
// printed, at most the newest maxCapture bytes of each stream.
func (s *Server) collect(ctx context.Context, sandboxID, sessionID string) (client.ExecResult, error) {
	c := &capture{}
	err := s.followTo(ctx, sandboxID, sessionID, wire.FromScrollback, true, c)
	return c.result(), err
}

// followTo follows a session, which may be known to have existed, to its end.
func (s *Server) followTo(ctx context.Context, sandboxID, sessionID string, from wire.From, known bool, dst sink) error {
	return s.follow(ctx, &follower{sandboxID: sandboxID, sessionID: sessionID, from: agentclient.From{Place: from}, known: known}, dst)
}

// follow has a follower follow its session to the end.
func (s *Server) follow(ctx context.Context, f *follower, dst sink) error {
	f.s, f.orgID = s, orgOf(ctx)
	if err := f.open(ctx); err != nil {
		return err
	}
	defer f.close()
	return f.run(ctx, dst)
}

// capture is a sink that keeps output.
type capture struct {
	stdout, stderr tail
	missing        bool
	exit           wire.Exit
}

func (c *capture) position(_ client.Position, missing int64) error {
	c.missing = c.missing || missing > 0
	return nil
}

func (c *capture) output(stream wire.Stream, p []byte) error {
	if stream == wire.Stderr {
		c.stderr.add(p)
	} else {
		c.stdout.add(p)
	}
	return nil
}

func (c *capture) scrollback() error { return nil }

func (c *capture) exited(e wire.Exit) error {
	c.exit = e
	return nil
}

// result says how the run ended, as the published API does.
func (c *capture) result() client.ExecResult {
	out := client.ExecResult{
		ExitCode: c.exit.Code, Stdout: c.stdout.String(), Stderr: c.stderr.String(),
		Truncated: c.missing || c.stdout.cut || c.stderr.cut,
	}
	if c.exit.TimedOut {
		out.ExitCode = timedOut
		if out.Stderr != "" && !strings.HasSuffix(out.Stderr, "\n") {
			out.Stderr += "\n"
		}
		out.Stderr += "Process timed out"
	}
	return out
}

// tail keeps the newest maxCapture bytes of a stream.
type tail struct {
	bytes.Buffer
	cut bool
}

func (t *tail) add(p []byte) {
	if over := t.Len() + len(p) - maxCapture; over > 0 {
		t.Next(min(over, t.Len()))
		t.cut = true
	}
	t.Write(p)
}

func (s *Server) runAsync(ctx context.Context, in *execInput) (*huma.StreamResponse, error) {
	info, err := s.startRun(ctx, in.ID, &in.Body)
	if err != nil {
		return nil, s.errorAnswer(ctx, err)
	}
	out, err := s.within(ctx, asyncHold, in.ID, info.ID)
	if err != nil {
		return nil, s.errorAnswer(ctx, err)
	}
	status := http.StatusOK
	if out.Running {
		status = http.StatusAccepted
		out.StartedAt = info.StartedAt.UTC().Format(time.RFC3339Nano)
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		_, w := humago.Unwrap(c)
		writeJSON(w, status, out)
	}}, nil
}

func (s *Server) runResult(ctx context.Context, in *sessionInput) (client.AsyncRun, error) {
	return s.within(ctx, asyncPoll, in.ID, in.Session)
}

// within gives the result of a run if it ends in time. The run and its output
// are the agent's: nothing of them is kept here in between.
func (s *Server) within(ctx context.Context, wait time.Duration, sandboxID, sessionID string) (client.AsyncRun, error) {
	out := client.AsyncRun{ExecID: sessionID}
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := s.followTo(bounded, sandboxID, sessionID, wire.FromEnd, false, &capture{})
	switch {
	case err == nil:
	case bounded.Err() != nil && ctx.Err() == nil:
		out.Running = true
		return out, nil
	case errors.Is(err, errSessionLost):
		out.Error = errSessionLost.Message
		return out, nil
	default:
		return out, err
	}
	res, err := s.collect(ctx, sandboxID, sessionID)
	out.ExitCode, out.Stdout, out.Stderr, out.Truncated = &res.ExitCode, res.Stdout, res.Stderr, res.Truncated
	return out, err
}
