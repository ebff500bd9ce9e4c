// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/sandbox"
)

const (
	defaultCols, defaultRows = 80, 24
	maxTerminal              = 4096 // columns or rows
	// defaultShell runs the best shell that the template has.
	defaultShell = "command -v bash >/dev/null && exec bash; exec sh"
)

func (s *Server) ptyRoutes() {
	typed(s, "POST /api/sandboxes/{id}/pty", "Open a terminal", http.StatusCreated, s.openPTY)
	typed(s, "POST /api/sandboxes/{id}/pty/{session}/resize", "Change the size of a terminal", http.StatusOK, s.resizePTY)
	empty(s, "DELETE /api/sandboxes/{id}/pty/{session}", "End a terminal", s.closePTY)
	s.raw("GET /api/sandboxes/{id}/pty/{session}", "Attach to a terminal (WebSocket)", http.StatusSwitchingProtocols, s.attachPTY)
	// One released client leaves /api out of socket addresses.
	s.mux.HandleFunc("GET /sandboxes/{id}/pty/{session}", s.authenticated(s.attachPTY))
}

type ptyInput struct {
	ID   string `path:"id" doc:"Sandbox id"`
	Body client.PTYRequest
}

func (s *Server) openPTY(ctx context.Context, in *ptyInput) (client.PTYSession, error) {
	size, err := terminalSize(in.Body.Cols, in.Body.Rows)
	if err != nil {
		return client.PTYSession{}, err
	}
	argv := []string{"/bin/sh", "-c", defaultShell}
	if in.Body.Shell != "" {
		argv = []string{in.Body.Shell}
	}
	info, err := s.startSession(ctx, in.ID, wire.StartRequest{Key: newID(16), Argv: argv, TTY: &size, Hold: true}, nil)
	return client.PTYSession{SessionID: info.ID, SandboxID: in.ID}, err
}

// terminalSize checks a size; 0 is the default.
func terminalSize(cols, rows int) (wire.Size, error) {
	if cols < 0 || rows < 0 || cols > maxTerminal || rows > maxTerminal {
		return wire.Size{}, fault.New(fault.Invalid, "cols and rows must be between 1 and %d", maxTerminal)
	}
	if cols == 0 {
		cols = defaultCols
	}
	if rows == 0 {
		rows = defaultRows
	}
	return wire.Size{Cols: uint16(cols), Rows: uint16(rows)}, nil
}

type resizeInput struct {
	ID      string `path:"id" doc:"Sandbox id"`
	Session string `path:"session" doc:"Session id"`
	Body    client.ResizeRequest
}

func (s *Server) resizePTY(ctx context.Context, in *resizeInput) (none, error) {
	size, err := terminalSize(in.Body.Cols, in.Body.Rows)
	if err != nil {
		return none{}, err
	}
	return none{}, s.withAgent(ctx, in.ID, func(ctx context.Context, lease *sandbox.Lease) error {
		return lease.Agent.Resize(ctx, in.Session, size)
	})
}

// closePTY kills the shell; what else ran on the terminal gets its hangup.
func (s *Server) closePTY(ctx context.Context, in *sessionInput) error {
	_, err := s.signal(ctx, in.ID, in.Session, defaultSignal)
	return err
}

// attachPTY serves a terminal's socket.
func (s *Server) attachPTY(w http.ResponseWriter, r *http.Request) {
	s.serveSession(w, r, agentclient.From{Place: wire.FromScrollback}, func(a *attachment) speaker { return ptySpeaker{a} })
}

// ptySpeaker speaks raw bytes.
type ptySpeaker struct{ *attachment }

func (p ptySpeaker) position(client.Position, int64) error     { return nil }
func (p ptySpeaker) output(_ wire.Stream, b []byte) error      { return p.so.write(b) }
func (p ptySpeaker) scrollback() error                         { return nil }
func (p ptySpeaker) exited(wire.Exit) error                    { return nil }
func (p ptySpeaker) hear(ctx context.Context, m message) error { return p.input(ctx, m.data) }
func (p ptySpeaker) lost(reason string)                        { _ = p.so.write([]byte("\r\n" + reason + "\r\n")) }
