// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/opencomputer/oc/client"
)

// run runs a shell line.
func (w *world) run(line string) client.ExecResult {
	w.t.Helper()
	res, err := w.client(keyA).RunExec(w.t.Context(), boxA, client.ExecRequest{Cmd: line})
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

// start starts a session.
func (w *world) start(argv ...string) string {
	w.t.Helper()
	s, err := w.client(keyA).StartExec(w.t.Context(), boxA, client.ExecRequest{Cmd: argv[0], Args: argv[1:]})
	if err != nil {
		w.t.Fatal(err)
	}
	return s.SessionID
}

// dial opens a socket as a released client would, with the key in the query.
func (w *world) dial(path string) *websocket.Conn {
	w.t.Helper()
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	conn, _, err := websocket.Dial(w.t.Context(), w.url+path+sep+"api_key="+keyA, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.CloseNow() })
	conn.SetReadLimit(1 << 20)
	return conn
}

// frames reads a socket to its close: the bytes of each kind, the order in which
// kinds first came, and the close code.
func frames(t *testing.T, conn *websocket.Conn) (got map[byte]string, order string, code websocket.StatusCode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got = map[byte]string{}
	for {
		typ, msg, err := conn.Read(ctx)
		if err != nil {
			return got, order, websocket.CloseStatus(err)
		}
		if typ != websocket.MessageBinary || len(msg) == 0 {
			t.Fatalf("message of type %v, %d bytes", typ, len(msg))
		}
		if _, seen := got[msg[0]]; !seen || msg[0] >= client.FrameExit {
			order += fmt.Sprint(msg[0])
		}
		got[msg[0]] += string(msg[1:])
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		req  client.ExecRequest
		want client.ExecResult
	}{
		{client.ExecRequest{Cmd: "echo out; echo err >&2; exit 3"}, client.ExecResult{ExitCode: 3, Stdout: "out\n", Stderr: "err\n"}},
		{client.ExecRequest{Cmd: "printf", Args: []string{"%s|", "a b", "$HOME"}}, client.ExecResult{Stdout: "a b|$HOME|"}},
		{client.ExecRequest{Cmd: "echo $FROM_BOX $BOTH $OWN", Envs: map[string]string{"BOTH": "call", "OWN": "2"}}, client.ExecResult{Stdout: "1 call 2\n"}},
		{client.ExecRequest{Cmd: "pwd", Cwd: "/"}, client.ExecResult{Stdout: "/\n"}},
		{client.ExecRequest{Cmd: "cat"}, client.ExecResult{}},
		{client.ExecRequest{Cmd: "no-such-program", Args: []string{"x"}}, client.ExecResult{ExitCode: 127, Stderr: "oc: no-such-program: not found\n"}},
		{client.ExecRequest{Cmd: "printf partial >&2; sleep 60", Timeout: 1}, client.ExecResult{ExitCode: -1, Stderr: "partial\nProcess timed out"}},
	} {
		got, err := w.client(keyA).RunExec(t.Context(), boxA, c.req)
		if err != nil || got != c.want {
			t.Errorf("%v: %+v, %v; want %+v", c.req, got, err, c.want)
		}
	}
	for _, path := range []string{"/exec/run", "/commands"} {
		if status, body := w.do("POST", "/api/sandboxes/"+boxA+path, `{"cmd":"echo hi","timeout":60}`); status != 200 || body != `{"exitCode":0,"stdout":"hi\n","stderr":""}` {
			t.Errorf("%s: %d %s", path, status, body)
		}
		if status, body := w.do("POST", "/api/sandboxes/"+boxA+path, ""); status != 400 || !strings.Contains(body, "cmd is required") {
			t.Errorf("%s: %d %s", path, status, body)
		}
		if status, body := w.do("POST", "/api/sandboxes/"+goneA+path, `{"cmd":"true"}`); status != 410 || !strings.Contains(body, "has been stopped") {
			t.Errorf("%s of a stopped sandbox: %d %s", path, status, body)
		}
	}
}

func TestRunLargeOutput(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	res := w.run("head -c 8000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2")
	if len(res.Stdout) != 8_000_000 || len(res.Stderr) != 3_000_000 || res.Truncated {
		t.Errorf("%d, %d bytes, truncated %v", len(res.Stdout), len(res.Stderr), res.Truncated)
	}
	res = w.run("head -c 20000000 /dev/zero | tr '\\0' x; echo end")
	if len(res.Stdout) != maxCapture || !strings.HasSuffix(res.Stdout, "xend\n") || !res.Truncated {
		t.Errorf("%d bytes, truncated %v", len(res.Stdout), res.Truncated)
	}
}

func TestManyRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 100 {
		want := client.ExecResult{ExitCode: i % 50, Stdout: fmt.Sprintf("%d\n", i)}
		if got := w.run(fmt.Sprintf("echo %d; exit %d", i, i%50)); got != want {
			t.Fatalf("%d: %+v", i, got)
		}
	}
}

func TestRunAsync(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	base := "/api/sandboxes/" + boxA + "/exec/"
	status, body := w.do("POST", base+"run-async", `{"cmd":"sh","args":["-c","echo quick; exit 2"],"timeout":60}`)
	if status != 200 || !strings.Contains(body, `"running":false,"exitCode":2,"stdout":"quick\n","stderr":""`) {
		t.Errorf("quick: %d %s", status, body)
	}
	status, body = w.do("POST", base+"run-async", `{"cmd":"sleep 1; echo slow"}`)
	var run client.AsyncRun
	if err := json.Unmarshal([]byte(body), &run); err != nil || status != 202 || !run.Running || run.ExecID == "" || run.StartedAt == "" {
		t.Fatalf("slow: %d %s", status, body)
	}
	for deadline := time.Now().Add(20 * time.Second); run.Running; {
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
		_, body = w.do("GET", base+run.ExecID+"/result", "")
		run = client.AsyncRun{}
		if err := json.Unmarshal([]byte(body), &run); err != nil {
			t.Fatal(err)
		}
	}
	if run.Stdout != "slow\n" || run.ExitCode == nil || *run.ExitCode != 0 || run.Error != "" {
		t.Errorf("result: %s", body)
	}
	if status, _ := w.do("GET", base+"nothing/result", ""); status != 404 {
		t.Errorf("unknown run: %d", status)
	}
}

func TestExecSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(keyA)
	status, body := w.do("POST", "/api/sandboxes/"+boxA+"/exec", `{"cmd":"sleep","args":["60"],"maxRunAfterDisconnect":5,"key":"k1"}`)
	if status != 201 || !strings.Contains(body, `"sandboxID":"`+boxA+`","command":"sleep","args":["60"],"running":true`) {
		t.Errorf("start: %d %s", status, body)
	}
	_, again := w.do("POST", "/api/sandboxes/"+boxA+"/exec", `{"cmd":"sleep","args":["60"],"key":"k1"}`)
	var s1, s2 client.ExecSession
	_, _ = json.Unmarshal([]byte(body), &s1), json.Unmarshal([]byte(again), &s2)
	if s1.SessionID == "" || s1.SessionID != s2.SessionID {
		t.Errorf("the same key started %q and %q", s1.SessionID, s2.SessionID)
	}
	if status, body := w.do("POST", "/api/sandboxes/"+boxA+"/exec/"+s1.SessionID+"/kill", ""); status != 200 || body != "{}" {
		t.Errorf("kill: %d %s", status, body)
	}
	got, _, code := frames(t, w.dial("/api/sandboxes/"+boxA+"/exec/"+s1.SessionID))
	if got[client.FrameExit] != "\x00\x00\x00\x89" || code != 1000 {
		t.Errorf("exit frame %q, close %d", got[client.FrameExit], code)
	}
	if res, err := c.KillExec(t.Context(), boxA, s1.SessionID, 15); err != nil || !res.Ended {
		t.Errorf("kill of an ended session: %+v, %v", res, err)
	}
	list, err := c.ListExec(t.Context(), boxA)
	if err != nil || len(list) != 1 || list[0].Running || list[0].ExitCode == nil || *list[0].ExitCode != 137 {
		t.Errorf("list: %+v %v", list, err)
	}
	if status, _ := w.do("POST", "/api/sandboxes/"+boxA+"/exec/none/kill", ""); status != 404 {
		t.Errorf("kill of nothing: %d", status)
	}
	if status, _ := w.do("POST", "/api/sandboxes/"+boxA+"/exec/none/kill", `{"signal":99}`); status != 400 {
		t.Errorf("kill with no signal: %d", status)
	}
}

// TestExecFraming checks what a released client sees on an exec socket.
func TestExecFraming(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.start("sh", "-c", "echo out; echo err >&2; read line; echo got $line; exit 7")
	path := "/sandboxes/" + boxA + "/exec/" + id // without /api
	conn := w.dial(path)
	for _, m := range []struct {
		typ  websocket.MessageType
		data string
	}{{websocket.MessageText, "\x00text frames are not input\n"}, {websocket.MessageBinary, ""}, {websocket.MessageBinary, "\x7fnewer"}, {websocket.MessageBinary, "\x00hel"}, {websocket.MessageBinary, "\x00lo\n"}} {
		if err := conn.Write(t.Context(), m.typ, []byte(m.data)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(conn *websocket.Conn) {
		t.Helper()
		got, order, code := frames(t, conn)
		if got[1] != "out\ngot hello\n" || got[2] != "err\n" || got[3] != "\x00\x00\x00\x07" || code != 1000 {
			t.Errorf("frames %q, close %d", got, code)
		}
		if !strings.HasSuffix(order, "3") || strings.Count(order, "4") != 1 || strings.Count(order, "3") != 1 || strings.Contains(order, "6") {
			t.Errorf("order %s", order)
		}
	}
	check(conn)
	check(w.dial("/api/sandboxes/" + boxA + "/exec/" + id)) // of the finished session

	quiet := w.start("cat")
	conn = w.dial("/api/sandboxes/" + boxA + "/exec/" + quiet)
	if _, msg, err := conn.Read(t.Context()); err != nil || !bytes.Equal(msg, []byte{client.FrameScrollback}) {
		t.Errorf("first frame of a silent session: %v %v", msg, err)
	}
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte{client.FrameCloseStdin}); err != nil {
		t.Fatal(err)
	}
	if got, _, code := frames(t, conn); got[3] != "\x00\x00\x00\x00" || code != 1000 {
		t.Errorf("after the end of input: %q %d", got, code)
	}
}

func TestAttachRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(keyA)
	for _, x := range []struct {
		sandbox, session string
		status           int
	}{{boxA, "none", 404}, {goneA, "none", 410}, {boxB, "none", 404}} {
		_, err := c.AttachExec(t.Context(), x.sandbox, x.session, nil)
		var e *client.Error
		if !errors.As(err, &e) || e.Status != x.status || e.Message == "" {
			t.Errorf("attach to %s/%s: %v", x.sandbox, x.session, err)
		}
	}
	if status, _ := w.do("GET", "/api/sandboxes/"+boxA+"/exec/x?from=-1", ""); status != 400 {
		t.Errorf("negative offset: %d", status)
	}
}

// TestSlowReader passes a lot of output to a client that reads slowly at first.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const size = 24 << 20
	id := w.start("sh", "-c", fmt.Sprintf("cd '%s' && head -c %d /dev/urandom > data; cat data; sha256sum data >&2", t.TempDir(), size))
	s, err := w.client(keyA).AttachExec(t.Context(), boxA, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	quick := w.run("echo others are served; exit 4") // while nobody reads the socket
	if quick.ExitCode != 4 {
		t.Errorf("%+v", quick)
	}
	sum, stderr, total := sha256.New(), "", 0
	for {
		ev, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch ev.Kind {
		case client.EventStdout:
			sum.Write(ev.Data)
			total += len(ev.Data)
		case client.EventStderr:
			stderr += string(ev.Data)
		}
	}
	if want := fmt.Sprintf("%x  data\n", sum.Sum(nil)); total != size || stderr != want {
		t.Errorf("%d bytes, sum %q, want %d, %q", total, stderr, size, want)
	}
}

// TestResume cuts the connection in the middle of output, again and again, and
// goes on from the position.
func TestResume(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const rounds, chunk = 15, 100_000
	id := w.start("sh", "-c", fmt.Sprintf("cd '%s' && while read l; do head -c %d /dev/urandom | tee -a data; done; sha256sum data >&2", t.TempDir(), chunk))
	c := w.client(keyA)
	sum, total := sha256.New(), 0
	var from *client.Position
	for round := range rounds {
		s, err := c.AttachExec(t.Context(), boxA, id, from)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.WriteStdinAt(t.Context(), int64(round), []byte("\n")); err != nil {
			t.Fatal(err)
		}
		for total < round*chunk+chunk*(round+1)/(rounds+1) || s.Position().Stdin <= int64(round) {
			ev, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			sum.Write(ev.Data)
			total += len(ev.Data)
		}
		pos := s.Position()
		from = &pos
		s.Close()
	}
	s, err := c.AttachExec(t.Context(), boxA, id, from)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	for {
		ev, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		switch ev.Kind {
		case client.EventStdout:
			sum.Write(ev.Data)
			total += len(ev.Data)
		case client.EventStderr:
			if want := fmt.Sprintf("%x  data\n", sum.Sum(nil)); total != rounds*chunk || string(ev.Data) != want {
				t.Errorf("%d bytes, sum %q, want %q", total, ev.Data, want)
			}
			return
		}
	}
}

// TestStdinExactly sends input with offsets over connections that break.
func TestStdinExactly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.start("sha256sum")
	c := w.client(keyA)
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	var from *client.Position
	for off := int64(0); ; {
		s, err := c.AttachExec(t.Context(), boxA, id, from)
		if err != nil {
			t.Fatal(err)
		}
		if off == int64(len(data)) {
			finishStdin(t, s, fmt.Sprintf("%x  -\n", sha256.Sum256(data)))
			return
		}
		// Send twice as much as is waited for, and some of it again.
		next := min(off+200_000, int64(len(data)))
		if err := s.WriteStdinAt(t.Context(), max(0, off-1000), data[max(0, off-1000):next]); err != nil {
			t.Fatal(err)
		}
		for s.Position().Stdin < min(off+100_000, next) {
			if _, err := s.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		pos := s.Position()
		from, off = &pos, pos.Stdin
		s.Close()
	}
}

func finishStdin(t *testing.T, s *client.ExecStream, want string) {
	t.Helper()
	defer s.Close()
	if err := s.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	out := ""
	for {
		ev, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		out += string(ev.Data)
	}
	if out != want {
		t.Errorf("%q, want %q", out, want)
	}
}

// TestTwoWriters has two clients type into one session.
func TestTwoWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.start("sort")
	path := "/api/sandboxes/" + boxA + "/exec/" + id
	a, b := w.dial(path), w.dial(path)
	const n = 200
	errs := make(chan error, 2)
	for name, conn := range map[string]*websocket.Conn{"a": a, "b": b} {
		go func() {
			for i := range n {
				if err := conn.Write(t.Context(), websocket.MessageBinary, fmt.Appendf([]byte{0}, "%s%03d\n", name, i)); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	waitStdin(t, w, id, 2*n*5)
	if err := a.Write(t.Context(), websocket.MessageBinary, []byte{client.FrameCloseStdin}); err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, name := range []string{"a", "b"} {
		for i := range n {
			want += fmt.Sprintf("%s%03d\n", name, i)
		}
	}
	for _, conn := range []*websocket.Conn{a, b} {
		if got, _, _ := frames(t, conn); got[1] != want {
			t.Errorf("%d bytes, want %d", len(got[1]), len(want))
		}
	}
}

// waitStdin waits until a session has taken so much input.
func waitStdin(t *testing.T, w *world, id string, want int64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		w.mu.Lock()
		agent := w.boxes[boxA].agent
		w.mu.Unlock()
		info, err := agent.Session(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if info.StdinOffset == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of input were taken, want %d", info.StdinOffset, want)
		}
	}
}

// TestShutdown checks that sockets are closed with the request to come again.
func TestShutdown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conn := w.dial("/api/sandboxes/" + boxA + "/exec/" + w.start("sleep", "60"))
	if _, _, err := conn.Read(t.Context()); err != nil { // the scrollback's end
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- w.srv.Shutdown(t.Context()) }()
	if _, _, code := frames(t, conn); code != client.CloseRetry {
		t.Errorf("close %d", code)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if status, _ := w.do("GET", "/readyz", ""); status != http.StatusServiceUnavailable {
		t.Errorf("ready: %d", status)
	}
}

// FuzzSocketMessage feeds what a client may send to both dialects. The sandbox
// is not there, so that what is understood ends in a fault.
func FuzzSocketMessage(f *testing.F) {
	for _, s := range []string{"", "\x00in", "\x05", "\x07", "\x07\x00\x00\x00\x00\x00\x00\x00\x01x", "\x07\xff\xff\xff\xff\xff\xff\xff\xff", "\x7f"} {
		f.Add([]byte(s), true)
	}
	var w *world
	f.Fuzz(func(t *testing.T, data []byte, binary bool) {
		if w == nil {
			w = newWorld(t)
		}
		a := &attachment{s: w.srv, sandboxID: "sb-nothing1", sessionID: "s"}
		for _, sp := range []speaker{&execSpeaker{attachment: a, positions: true}, ptySpeaker{a}} {
			_ = sp.hear(t.Context(), message{binary: binary, data: data})
		}
	})
}
