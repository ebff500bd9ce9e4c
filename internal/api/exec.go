// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/sandbox"
)

// defaultSignal is what a kill without a signal sends: SIGKILL.
const defaultSignal = 9

func (s *Server) execRoutes() {
	typed(s, "POST /api/sandboxes/{id}/exec", "Start a program as a session", http.StatusCreated, s.startExec)
	typed(s, "GET /api/sandboxes/{id}/exec", "The sessions, with those that ended lately", http.StatusOK, s.listExec)
	typed(s, "POST /api/sandboxes/{id}/exec/{session}/kill", "Send a signal to a session's process group", http.StatusOK, s.killExec)
	typed(s, "POST /api/sandboxes/{id}/exec/run", "Run a program to its end", http.StatusOK, s.runExec)
	typed(s, "POST /api/sandboxes/{id}/commands", "Same as exec/run", http.StatusOK, s.runExec)
	s.runAsyncRoutes()
	s.raw("GET /api/sandboxes/{id}/exec/{session}", "Attach to a session (WebSocket)", http.StatusSwitchingProtocols, s.attachExec)
	// One released client leaves /api out of socket addresses.
	s.mux.HandleFunc("GET /sandboxes/{id}/exec/{session}", s.authenticated(s.attachExec))
}

type execInput struct {
	ID   string `path:"id" doc:"Sandbox id"`
	Body client.ExecRequest
}

type sessionInput struct {
	ID      string `path:"id" doc:"Sandbox id"`
	Session string `path:"session" doc:"Session id"`
}

func (s *Server) startExec(ctx context.Context, in *execInput) (client.ExecSession, error) {
	b := &in.Body
	if err := checkExec(b); err != nil {
		return client.ExecSession{}, err
	}
	req := wire.StartRequest{
		Key: first(b.Key, newID(16)), Argv: append([]string{b.Cmd}, b.Args...),
		Cwd: b.Cwd, User: b.User, Timeout: float64(b.Timeout), Hold: !b.Detach,
	}
	info, err := s.startSession(ctx, in.ID, req, b.Envs)
	return sessionOut(in.ID, info), err
}

// checkExec refuses what cannot be run.
func checkExec(b *client.ExecRequest) error {
	if b.Cmd == "" {
		return fault.New(fault.Invalid, "cmd is required")
	}
	return checkTimeout(b.Timeout)
}

// startSession starts a session with the sandbox's environment and, over it, the
// call's. The request's key makes it happen once.
func (s *Server) startSession(ctx context.Context, sandboxID string, req wire.StartRequest, envs map[string]string) (info wire.SessionInfo, err error) {
	err = s.withAgent(ctx, sandboxID, func(ctx context.Context, lease *sandbox.Lease) error {
		req.Env = environment(lease.Sandbox.Envs, envs)
		info, err = lease.Agent.Start(ctx, req)
		return err
	})
	return info, err
}

// environment lays what a call sets over what the sandbox sets. It is sorted, so
// that the same call is the same request.
func environment(base, call map[string]string) []string {
	env := map[string]string{}
	maps.Copy(env, base)
	maps.Copy(env, call)
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// sessionOut makes the wire form of a session.
func sessionOut(sandboxID string, info wire.SessionInfo) client.ExecSession {
	out := client.ExecSession{
		SessionID: info.ID, SandboxID: sandboxID, Args: []string{},
		Running: info.Exit == nil, StartedAt: info.StartedAt.UTC().Format(time.RFC3339Nano),
		AttachedClients: info.Attached, TTY: info.TTY, Timeline: info.Timeline,
	}
	if len(info.Argv) > 0 {
		out.Command = info.Argv[0]
		out.Args = append(out.Args, info.Argv[1:]...)
	}
	if info.Exit != nil {
		out.ExitCode = &info.Exit.Code
	}
	return out
}

func (s *Server) listExec(ctx context.Context, in *idInput) ([]client.ExecSession, error) {
	var infos []wire.SessionInfo
	err := s.withAgent(ctx, in.ID, func(ctx context.Context, lease *sandbox.Lease) (err error) {
		infos, err = lease.Agent.Sessions(ctx)
		return err
	})
	return each(infos, func(i wire.SessionInfo) client.ExecSession { return sessionOut(in.ID, i) }), err
}

type killInput struct {
	ID      string `path:"id" doc:"Sandbox id"`
	Session string `path:"session" doc:"Session id"`
	Body    client.KillRequest
}

// killExec answers with an object: a released client cannot do without a body.
// A session that has ended is as it should be.
func (s *Server) killExec(ctx context.Context, in *killInput) (client.KillResult, error) {
	sig := in.Body.Signal
	if sig == 0 {
		sig = defaultSignal
	}
	if sig < 1 || sig > 64 {
		return client.KillResult{}, fault.New(fault.Invalid, "signal must be between 1 and 64")
	}
	ended, err := s.signal(ctx, in.ID, in.Session, sig)
	return client.KillResult{Ended: ended}, err
}

// signal sends a signal to a session, and tells whether it had ended.
func (s *Server) signal(ctx context.Context, sandboxID, sessionID string, sig int) (ended bool, err error) {
	err = s.withAgent(ctx, sandboxID, func(ctx context.Context, lease *sandbox.Lease) error {
		err := lease.Agent.Signal(ctx, sessionID, sig)
		if ended = fault.Is(err, fault.Conflict); ended {
			return nil
		}
		return err
	})
	return ended, err
}
