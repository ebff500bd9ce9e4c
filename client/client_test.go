// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// serve gives a client of a server that answers with h.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	hs := httptest.NewServer(h)
	t.Cleanup(hs.Close)
	c, err := New(hs.URL, "osb_key")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBaseURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"http://h:1": "http://h:1/api", "http://h:1/": "http://h:1/api", "http://h:1/api": "http://h:1/api",
		"http://h:1/api//": "http://h:1/api", "https://h/x": "https://h/x/api",
		"": "", "h:1": "", "ftp://h": "", "http://": "", "http://[": "",
	} {
		c, err := New(in, "")
		if (err == nil) != (want != "") || err == nil && c.BaseURL() != want {
			t.Errorf("%q: %v, %v", in, c, err)
		}
	}
}

// TestRequests checks method, address, key and body of each kind of call.
func TestRequests(t *testing.T) {
	t.Parallel()
	var got string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = fmt.Sprintf("%s %s %s %s", r.Header.Get("X-API-Key"), r.Method, r.URL.RequestURI(), body)
		w.WriteHeader(http.StatusNoContent)
	})
	ctx := t.Context()
	for want, call := range map[string]func() error{
		"DELETE /api/sandboxes/a%2Fb ":                           func() error { return c.KillSandbox(ctx, "a/b") },
		`POST /api/sandboxes/s/timeout {"timeout":0}`:            func() error { return c.SetTimeout(ctx, "s", 0) },
		"DELETE /api/sandboxes/s/checkpoints/c ":                 func() error { return c.DeleteCheckpoint(ctx, "s", "c") },
		"DELETE /api/templates/t ":                               func() error { return c.DeleteTemplate(ctx, "t") },
		`POST /api/sandboxes/s/exec/x/kill {"signal":2}`:         func() error { _, err := c.KillExec(ctx, "s", "x", 2); return err },
		`POST /api/sandboxes/s/pty/x/resize {"cols":1,"rows":2}`: func() error { return c.ResizePTY(ctx, "s", "x", 1, 2) },
		"DELETE /api/sandboxes/s/pty/x ":                         func() error { return c.ClosePTY(ctx, "s", "x") },
		"PUT /api/sandboxes/s/files?path=%2Fa+b&mode=755 x":      func() error { return c.WriteFile(ctx, "s", "/a b", 0o755, strings.NewReader("x")) },
		"PUT /api/sandboxes/s/files/tar?path=d x":                func() error { return c.PushTar(ctx, "s", "d", strings.NewReader("x")) },
		"POST /api/sandboxes/s/files/mkdir?path=d ":              func() error { return c.Mkdir(ctx, "s", "d") },
		"DELETE /api/sandboxes/s/files?path=d ":                  func() error { return c.RemoveFile(ctx, "s", "d") },
	} {
		if err := call(); err != nil || got != "osb_key "+want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		status int
		body   string
		want   Error
	}{
		{404, `{"error":"sandbox not found","code":"not_found","hint":"h"}`, Error{404, "not_found", "sandbox not found", "h"}},
		{500, `{"error":{"message":"nested"}}`, Error{500, "", "nested", ""}},
		{502, "<html>bad gateway\n", Error{502, "", "<html>bad gateway", ""}},
		{503, "", Error{503, "", "server answered 503 Service Unavailable", ""}},
		{400, `{"error":""}`, Error{400, "", "server answered 400 Bad Request", ""}},
		{302, ``, Error{302, "", "server answered 302 Found", ""}},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(x.status)
			_, _ = io.WriteString(w, x.body)
		})
		_, err := c.GetSandbox(t.Context(), "s")
		var e *Error
		if !errors.As(err, &e) || (*e != x.want && x.body != `{"error":""}`) || e.Message == "" {
			t.Errorf("%d %s: %#v", x.status, x.body, err)
		}
		if IsNotFound(err) != (x.status == 404) {
			t.Errorf("%d: IsNotFound", x.status)
		}
	}
	c, _ := New("http://127.0.0.1:1", "")
	_, err := c.GetSandbox(t.Context(), "s")
	var e *Error
	if err == nil || errors.As(err, &e) || !strings.HasPrefix(err.Error(), "cannot reach http://127.0.0.1:1: ") {
		t.Errorf("%v", err)
	}
}

func TestEventStream(t *testing.T) {
	t.Parallel()
	log := "event: build_log\ndata: {\"step\":1,\"message\":\"a\"}\n\n: keepalive\n\n"
	for _, x := range []struct {
		name, stream, want string
		status             int
	}{
		{"result", log + "event: result\ndata: {\"id\":\"sb-1\"}\n\n", "", 0},
		{"no spaces, CRLF-free", "event:result\ndata:{\"id\":\ndata:\"sb-1\"}\n\n", "", 0},
		{"error", log + "event: error\ndata: {\"error\":\"x\",\"code\":\"conflict\",\"status\":409}\n\n", "x", 409},
		{"bare error", "event: error\ndata: oops\n\n", "oops", 500},
		{"cut", log, "without a result", 0},
		{"no JSON", "event: result\ndata: {\n\n", "unreadable answer", 0},
		{"endless line", "event: result\ndata: " + strings.Repeat("x", maxEvent+1), "progress stream", 0},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			_, _ = io.WriteString(w, x.stream)
		})
		var lines []string
		sb, err := c.CreateSandbox(t.Context(), CreateSandboxRequest{}, func(l string) { lines = append(lines, l) })
		if x.want == "" && (err != nil || sb.ID != "sb-1") || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %+v %v", x.name, sb, err)
		}
		var e *Error
		if errors.As(err, &e) && e.Status != x.status {
			t.Errorf("%s: status %d", x.name, e.Status)
		}
		if strings.HasPrefix(x.stream, log) && !slices.Equal(lines, []string{"a"}) {
			t.Errorf("%s: progress %q", x.name, lines)
		}
	}
}

func TestWaitCheckpoint(t *testing.T) {
	t.Parallel()
	asked := 0
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked++
		status := CheckpointProcessing
		if asked == 3 {
			status = CheckpointFailed
		}
		fmt.Fprintf(w, `{"id":"cp-1","status":%q,"errorMsg":"why"}`, status)
	})
	cp, err := c.WaitCheckpoint(t.Context(), "cp-1")
	if err != nil || cp.Status != CheckpointFailed || asked != 3 {
		t.Errorf("%+v %v after %d", cp, err, asked)
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		msg  []byte
		want Event
		bad  bool
	}{
		{[]byte("\x01out"), Event{Kind: EventStdout, Data: []byte("out")}, false},
		{[]byte("\x02"), Event{Kind: EventStderr, Data: []byte{}}, false},
		{[]byte{4}, Event{Kind: EventScrollback}, false},
		{ExitFrame(-1, false), Event{Kind: EventExit, ExitCode: -1}, false},
		{ExitFrame(137, false), Event{Kind: EventExit, ExitCode: 137}, false},
		{ExitFrame(137, true), Event{Kind: EventExit, ExitCode: 137, TimedOut: true}, false},
		{PositionFrame(Position{"tl-1", 5, 6}), Event{Kind: EventPosition, Position: Position{"tl-1", 5, 6}}, false},
		{StdinAckFrame(9), Event{Kind: EventStdinAck, Position: Position{Stdin: 9}}, false},
		{nil, Event{}, true},
		{[]byte{3, 0, 0}, Event{}, true},
		{[]byte{6, '{'}, Event{}, true},
		{[]byte("\x06{\"offset\":-1}"), Event{}, true},
		{bytes.Repeat([]byte{6}, maxPosition+2), Event{}, true},
		{[]byte{8, 0xff, 0, 0, 0, 0, 0, 0, 0}, Event{}, true},
		{[]byte{0x55}, Event{}, true},
	} {
		got, err := decodeFrame(x.msg)
		if (err != nil) != x.bad || !x.bad && fmt.Sprint(got) != fmt.Sprint(x.want) {
			t.Errorf("%q: %+v, %v", x.msg, got, err)
		}
	}
	off, p, err := ParseStdinAt(StdinAtFrame(1<<40, []byte("in")))
	if off != 1<<40 || string(p) != "in" || err != nil {
		t.Errorf("%d %q %v", off, p, err)
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, s := range [][]byte{nil, {1}, ExitFrame(1, true), PositionFrame(Position{"t", 1, 2}), StdinAckFrame(1), []byte("\x06null")} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		ev, err := decodeFrame(msg)
		if err == nil && (ev.Kind == 0 || ev.Position.Offset < 0 || ev.Position.Stdin < 0 || len(ev.Data) >= max(len(msg), 1)) {
			t.Errorf("%q: %+v", msg, ev)
		}
		if off, p, err := ParseStdinAt(msg); err == nil && (off < 0 || len(p) > len(msg)) {
			t.Errorf("%q: %d %q", msg, off, p)
		}
	})
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte("event: result\ndata: {}\n\n"))
	f.Add([]byte(": c\n\nevent\n\ndata:\ndata: x\r\n\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		_ = readEvents(bytes.NewReader(stream), func(_ string, data []byte) error {
			if len(data) > maxEvent {
				t.Errorf("event of %d bytes", len(data))
			}
			return nil
		})
		resp := &http.Response{Header: http.Header{"Content-Type": {eventStream}}, Body: io.NopCloser(bytes.NewReader(stream))}
		var sb Sandbox
		_ = progressResult(resp, watcher{}, &sb)
	})
}

func FuzzErrorBody(f *testing.F) {
	f.Add([]byte(`{"error":"x"}`))
	f.Add([]byte(`{"error":{"message":1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		resp := &http.Response{StatusCode: 400, Status: "400 Bad Request", Body: io.NopCloser(bytes.NewReader(body))}
		if errorFrom(resp).Message == "" {
			t.Errorf("no message for %q", body)
		}
	})
}

// TestTimes checks that the times of an answer without any are valid.
func TestTimes(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `[{"id":"x","startedAt":"2026-01-02T03:04:05.123456789Z","endAt":"0001-01-01T00:00:00Z","new":1}]`)
	})
	list, err := c.ListSandboxes(t.Context(), true)
	if err != nil || len(list) != 1 || !list[0].EndAt.IsZero() || list[0].StartedAt.UTC().Truncate(time.Second).Format(time.RFC3339) != "2026-01-02T03:04:05Z" {
		t.Errorf("%+v %v", list, err)
	}
}
