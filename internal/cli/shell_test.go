// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/creack/pty"
	"github.com/opencomputer/oc/client"
	"golang.org/x/term"
)

// terminal is a real pair: what is typed and drawn on one side, what oc uses on
// the other.
type terminal struct {
	user, oc *os.File
	fd       int // of oc
	drawn    buffer
	before   *term.State
	reading  sync.WaitGroup
}

func newTerminal(t *testing.T, cols, rows uint16) *terminal {
	t.Helper()
	user, oc, err := pty.Open()
	if err != nil {
		t.Fatalf("no pseudo-terminal (is devpts mounted?): %v", err)
	}
	x := &terminal{user: user, oc: oc, fd: int(oc.Fd())}
	x.resize(t, cols, rows)
	if x.before, err = term.GetState(x.fd); err != nil {
		t.Fatal(err)
	}
	x.reading.Go(func() { _, _ = io.Copy(&x.drawn, user) })
	t.Cleanup(func() {
		oc.Close() // with which the user's reading ends
		x.reading.Wait()
		user.Close()
	})
	return x
}

func (x *terminal) resize(t *testing.T, cols, rows uint16) {
	t.Helper()
	if err := pty.Setsize(x.user, &pty.Winsize{Cols: cols, Rows: rows}); err != nil {
		t.Fatal(err)
	}
}

func (x *terminal) typed(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(x.user, s); err != nil {
		t.Error(err)
	}
}

// restored checks that the terminal is as it was.
func (x *terminal) restored(t *testing.T) {
	t.Helper()
	after, err := term.GetState(x.fd)
	if err != nil || !reflect.DeepEqual(after, x.before) {
		t.Errorf("the terminal is not as before: %v", err)
	}
}

// raw tells whether the terminal is in raw mode.
func (x *terminal) raw() bool {
	now, err := term.GetState(x.fd)
	return err == nil && !reflect.DeepEqual(now, x.before)
}

// fakePTY is a server with one terminal, whose attachments a test plays.
type fakePTY struct {
	*fake
	mu    sync.Mutex
	sizes [][2]int
	ended bool

	attached int
}

func newFakePTY(t *testing.T, scripts ...func(*attachment)) *fakePTY {
	t.Helper()
	f := &fakePTY{fake: newFake(t)}
	f.reply("GET /api/sandboxes/sb-1", 200, sbJSON)
	size := func(r *http.Request) {
		var s client.ResizeRequest
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		f.sizes = append(f.sizes, [2]int{s.Cols, s.Rows})
		f.mu.Unlock()
	}
	f.handle("POST /api/sandboxes/sb-1/pty", func(w http.ResponseWriter, r *http.Request) {
		size(r)
		_, _ = io.WriteString(w, `{"sessionID":"p1","sandboxID":"sb-1"}`)
	})
	f.handle("POST /api/sandboxes/sb-1/pty/p1/resize", func(_ http.ResponseWriter, r *http.Request) { size(r) })
	f.handle("DELETE /api/sandboxes/sb-1/pty/p1", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		f.ended = true
		f.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	f.handle("GET /api/sandboxes/sb-1/exec/p1", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		n := f.attached
		f.attached++
		f.mu.Unlock()
		if n >= len(scripts) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		scripts[n](&attachment{t: t, conn: conn, ctx: r.Context()})
		_ = conn.CloseNow()
	})
	return f
}

func (f *fakePTY) state() (sizes [][2]int, ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.sizes), f.ended
}

// typedInto reads what was typed.
func (a *attachment) typedInto(want string) {
	if got := a.input(len(want)); got != want {
		a.t.Errorf("typed %q, want %q", got, want)
	}
}

// run runs a command line on the terminal.
func (x *terminal) run(t *testing.T, i invocation) (code int, errOut string) {
	t.Helper()
	i.stdin = x.oc
	var b buffer
	code = i.into(t, x.oc, &b)
	return code, b.String()
}

func TestShell(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, 100, 30)
	signals := make(chan os.Signal)
	var srv *fakePTY
	srv = newFakePTY(t, func(a *attachment) {
		eventually(t, "the terminal is raw", x.raw)
		a.begin("t", 0, 0)
		a.stdout("$ ")
		x.typed(t, "ls\r\x03") // Ctrl-C is a byte
		a.typedInto("ls\r\x03")
		x.resize(t, 120, 40)
		signals <- syscall.SIGWINCH
		eventually(t, "the new size is sent", func() bool {
			sizes, _ := srv.state()
			return slices.Contains(sizes, [2]int{120, 40})
		})
		a.stdout("bye\r\n")
		a.exit(0)
	})
	code, errOut := x.run(t, invocation{url: srv.URL, signals: signals, args: []string{"shell", "sb-1", "--shell", "/bin/zsh"}})
	if code != 0 || errOut != "" {
		t.Errorf("%d %s", code, errOut)
	}
	x.restored(t)
	eventually(t, "all is drawn", func() bool { return strings.Contains(x.drawn.String(), "$ bye\r\n") })
	sizes, ended := srv.state()
	if !ended || sizes[0] != [2]int{100, 30} {
		t.Errorf("sizes %v, ended %t", sizes, ended)
	}
	if sent := srv.received(); !slices.Contains(sent, `POST /api/sandboxes/sb-1/pty {"cols":100,"rows":30,"shell":"/bin/zsh"}`) {
		t.Errorf("sent %q", sent)
	}
}

// TestShellContinues when the server restarts: what is drawn is neither lost nor
// doubled.
func TestShellContinues(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, 80, 24)
	srv := newFakePTY(t,
		func(a *attachment) {
			eventually(t, "the terminal is raw", x.raw)
			a.begin("t", 0, 0)
			a.stdout("one ")
			x.typed(t, "ab")
			a.typedInto("ab")
			_ = a.conn.Close(client.CloseRetry, "the server stops")
		},
		func(a *attachment) {
			a.begin("t", 4, 2)
			x.typed(t, "c")
			a.typedInto("c")
			a.stdout("two\r\n")
			a.exit(0)
		})
	code, errOut := x.run(t, invocation{url: srv.URL, args: []string{"shell", "sb-1"}})
	if code != 0 || errOut != "" {
		t.Errorf("%d %s", code, errOut)
	}
	x.restored(t)
	want := "one \r\noc: connection lost, trying again\r\ntwo\r\n"
	eventually(t, "all is drawn", func() bool { return x.drawn.String() == want })
}

// TestShellRestoresTheTerminal on each way out.
func TestShellRestoresTheTerminal(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		script func(a *attachment, signals chan os.Signal)
		code   int
		errOut string
	}{
		"connection lost": {func(*attachment, chan os.Signal) {}, 255, "Error: lost the connection for more than 300ms"},
		"exit code":       {func(a *attachment, _ chan os.Signal) { a.exit(3) }, 3, ""},
		"sandbox stopped": {func(a *attachment, _ chan os.Signal) {
			_ = a.conn.Close(client.CloseSandboxEnded, "sandbox sb-1 has been stopped")
		}, 255, "Error: sandbox sb-1 has been stopped\n"},
		"SIGTERM": {func(a *attachment, signals chan os.Signal) { signals <- syscall.SIGTERM; a.gone() }, 143, ""},
		"SIGHUP":  {func(a *attachment, signals chan os.Signal) { signals <- syscall.SIGHUP; a.gone() }, 129, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, 80, 24)
			signals := make(chan os.Signal)
			srv := newFakePTY(t, func(a *attachment) {
				eventually(t, "the terminal is raw", x.raw)
				tc.script(a, signals)
			})
			code, errOut := x.run(t, invocation{url: srv.URL, signals: signals, patience: 300 * time.Millisecond, args: []string{"shell", "sb-1"}})
			if code != tc.code || !strings.HasPrefix(errOut, tc.errOut) {
				t.Errorf("%d %s", code, errOut)
			}
			x.restored(t)
			if _, ended := srv.state(); !ended {
				t.Error("the remote terminal was left")
			}
		})
	}
}

func TestShellErrors(t *testing.T) {
	t.Parallel()
	for route, want := range map[string]string{
		"GET /api/sandboxes/sb-1":         "Error: failed to get sandbox: nope\n",
		"POST /api/sandboxes/sb-1/pty":    "Error: failed to create PTY: nope\n",
		"GET /api/sandboxes/sb-1/exec/p1": "Error: failed to connect: nope\n",
	} {
		srv := newFake(t)
		for r, body := range map[string]string{
			"GET /api/sandboxes/sb-1": sbJSON, "POST /api/sandboxes/sb-1/pty": `{"sessionID":"p1"}`,
			"GET /api/sandboxes/sb-1/exec/p1": "", "DELETE /api/sandboxes/sb-1/pty/p1": "",
		} {
			if r == route {
				srv.reply(r, 404, `{"error":"nope"}`)
			} else {
				srv.reply(r, 200, body)
			}
		}
		x := newTerminal(t, 0, 0)
		code, errOut := x.run(t, invocation{url: srv.URL, args: []string{"shell", "sb-1"}})
		if code != 3 || errOut != want {
			t.Errorf("%d %q, want %q", code, errOut, want)
		}
		x.restored(t)
	}
}

// TestProgressOnATerminal draws one line and takes it away.
func TestProgressOnATerminal(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, 40, 24)
	srv := newFake(t)
	srv.handle("POST /api/sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: build_log\ndata: {\"message\":\"fetching a package with a very long name \\u001b[2J\"}\n\n")
		w.(http.Flusher).Flush()
		eventually(t, "the step is drawn", func() bool { return strings.Contains(x.drawn.String(), "fetching") })
		_, _ = io.WriteString(w, "event: result\ndata: "+sbJSON+"\n\n")
	})
	var out buffer
	code := invocation{url: srv.URL, args: []string{"create"}}.into(t, &out, x.oc)
	if code != 0 || out.String() != "Created sandbox sb-1 (status: running)\n" {
		t.Errorf("%d %s", code, out.String())
	}
	eventually(t, "the line is taken away", func() bool { return strings.HasSuffix(x.drawn.String(), clearLine) })
	for _, line := range strings.Split(x.drawn.String(), clearLine) {
		if len([]rune(line)) > 39 || strings.ContainsAny(line, "\x1b\n") {
			t.Errorf("drew %q", line)
		}
	}
}
