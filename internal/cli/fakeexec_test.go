// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/opencomputer/oc/client"
)

// fakeExec is the exec part of a fake server: one session, whose attachments a
// test plays.
type fakeExec struct {
	*fake
	t      *testing.T
	played chan struct{} // one per attachment that was played to its end

	mu      sync.Mutex
	scripts []func(*attachment)
	signals []int
	queries []string
}

// attachment is one connection to the session.
type attachment struct {
	t    *testing.T
	conn *websocket.Conn
	ctx  context.Context

	taken  int64 // input, by the session's count
	silent bool  // acknowledge nothing
}

// newFakeExec makes a server whose session "s1" plays one script per attachment,
// and refuses further ones with 503.
func newFakeExec(t *testing.T, scripts ...func(*attachment)) *fakeExec {
	t.Helper()
	f := &fakeExec{fake: newFake(t), t: t, scripts: scripts, played: make(chan struct{}, 100)}
	f.reply("POST /api/sandboxes/sb-1/exec", 201, `{"sessionID":"s1","sandboxID":"sb-1","command":"x","args":[],"running":true,"startedAt":"2026-01-15T10:30:00Z","attachedClients":0}`)
	f.handle("GET /api/sandboxes/sb-1/exec/s1", f.attach)
	f.mux.HandleFunc("POST /api/sandboxes/sb-1/exec/s1/kill", func(w http.ResponseWriter, r *http.Request) {
		var req client.KillRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		f.signals = append(f.signals, req.Signal)
		f.mu.Unlock()
		_, _ = io.WriteString(w, "{}")
	})
	return f
}

func (f *fakeExec) attach(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.queries = append(f.queries, r.URL.RawQuery)
	var script func(*attachment)
	if len(f.scripts) > 0 {
		script, f.scripts = f.scripts[0], f.scripts[1:]
	}
	f.mu.Unlock()
	if script == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		f.t.Error(err)
		return
	}
	conn.SetReadLimit(1 << 20)
	script(&attachment{t: f.t, conn: conn, ctx: r.Context()})
	_ = conn.CloseNow()
	f.played <- struct{}{}
}

// received gives the signals so far.
func (f *fakeExec) received() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]int(nil), f.signals...)
}

func (a *attachment) send(frame []byte) {
	// Our peer may have left.
	_ = a.conn.Write(a.ctx, websocket.MessageBinary, frame)
}

func (a *attachment) position(timeline string, offset, stdin int64) {
	a.taken = stdin
	a.send(client.PositionFrame(client.Position{Timeline: timeline, Offset: offset, Stdin: stdin}))
}

// begin is what each attachment begins with.
func (a *attachment) begin(timeline string, offset, stdin int64) {
	a.position(timeline, offset, stdin)
	a.send([]byte{client.FrameScrollback})
}

func (a *attachment) stdout(s string) { a.send(append([]byte{client.FrameStdout}, s...)) }
func (a *attachment) stderr(s string) { a.send(append([]byte{client.FrameStderr}, s...)) }

// exit ends the session as the server does.
func (a *attachment) exit(code int) { a.end(client.ExitFrame(code, false)) }

// timeOut ends the session as the server does when its timeout has passed.
func (a *attachment) timeOut() { a.end(client.ExitFrame(137, true)) }

func (a *attachment) end(frame []byte) {
	a.send(frame)
	_ = a.conn.Close(websocket.StatusNormalClosure, "")
}

// input reads input until it ends or n bytes have come, and acknowledges it; n < 0
// means to its end.
func (a *attachment) input(n int) string {
	var b strings.Builder
	for n < 0 || b.Len() < n {
		_, msg, err := a.conn.Read(a.ctx)
		if err != nil {
			return b.String() + fmt.Sprintf("<%v>", err)
		}
		switch msg[0] {
		case client.FrameStdin:
			b.Write(msg[1:])
		case client.FrameStdinAt:
			off, p, err := client.ParseStdinAt(msg)
			if err != nil {
				a.t.Error(err)
			}
			if off != a.taken {
				a.t.Errorf("input at %d, not at %d", off, a.taken)
			}
			b.Write(p)
			a.taken += int64(len(p))
			if !a.silent {
				a.send(client.StdinAckFrame(a.taken))
			}
		case client.FrameCloseStdin:
			return b.String() + "<end>"
		default:
			a.t.Errorf("frame %x", msg)
		}
	}
	return b.String()
}

// gone waits until the client has left.
func (a *attachment) gone() {
	for {
		if _, _, err := a.conn.Read(a.ctx); err != nil {
			return
		}
	}
}
