// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/opencomputer/oc/client"
)

// until reads events until one whose data holds want.
func until(t *testing.T, s *client.ExecStream, want string) (positions []client.Position) {
	t.Helper()
	out := ""
	for !strings.Contains(out, want) {
		ev, err := s.Next(t.Context())
		if err != nil {
			t.Fatalf("no %q: %v, got %q", want, err, out)
		}
		out += string(ev.Data)
		if ev.Kind == client.EventPosition {
			positions = append(positions, ev.Position)
		}
	}
	return positions
}

// TestRestoreKnown follows a session over an in-place restore to a checkpoint
// that knows it.
func TestRestoreKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.start("sh", "-c", "while read l; do echo got $l; done; exit 5")
	s, err := w.client(keyA).AttachExec(t.Context(), boxA, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	plain := w.dial("/api/sandboxes/" + boxA + "/exec/" + id) // asks for no positions
	// Input at offsets: the stand-in for a restore does not take back what the
	// process was given, so input that is sent again must be known again.
	write := func(off int64, text string) {
		t.Helper()
		if err := s.WriteStdinAt(t.Context(), off, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write(0, "one\n")
	before := until(t, s, "got one\n")
	w.restore(boxA, true)
	write(4, "two\n")
	after := until(t, s, "got two\n")
	if len(before) != 1 || len(after) != 1 || before[0].Timeline == after[0].Timeline || after[0].Offset != 8 {
		t.Errorf("positions %+v, then %+v", before, after)
	}
	if p := s.Position(); p.Offset != 16 || p.Timeline != after[0].Timeline {
		t.Errorf("position %+v", p)
	}
	if err := s.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, order, code := frames(t, plain)
	if got[1] != "got one\ngot two\n" || got[3] != "\x00\x00\x00\x05" || code != 1000 || strings.Count(order, "4") != 1 {
		t.Errorf("plain client: %q %s %d", got, order, code)
	}
}

// TestRestoreUnknown follows a session over a restore that ends it.
func TestRestoreUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.start("sh", "-c", "echo up; exec cat")
	s, err := w.client(keyA).AttachExec(t.Context(), boxA, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	until(t, s, "up\n")
	conn := w.dial("/api/sandboxes/" + boxA + "/exec/" + id)
	pty, err := w.client(keyA).OpenPTY(t.Context(), boxA, client.PTYRequest{Shell: "/bin/cat"})
	if err != nil {
		t.Fatal(err)
	}
	term := w.dial("/api/sandboxes/" + boxA + "/pty/" + pty.SessionID)
	w.restore(boxA, false)
	got, _, code := frames(t, conn)
	if code != client.CloseSessionLost || !strings.Contains(got[2], "does not know it") || got[3] != "" {
		t.Errorf("%q %d", got, code)
	}
	for {
		if _, _, err = term.Read(t.Context()); err != nil {
			break
		}
	}
	if websocket.CloseStatus(err) != client.CloseSessionLost {
		t.Errorf("terminal: %v", err)
	}
	for err = nil; err == nil; {
		_, err = s.Next(t.Context())
	}
	var e *client.Error
	if !errors.As(err, &e) || e.Code != client.CodeGone || !strings.Contains(e.Message, "does not know it") {
		t.Errorf("%v", err)
	}
	if res := w.run("echo fresh"); res.Stdout != "fresh\n" {
		t.Errorf("after the restore: %+v", res)
	}
}

// TestRunOverRestore restores a sandbox in the middle of runs.
func TestRunOverRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("true")
	for _, known := range []bool{true, false} {
		type outcome struct {
			res client.ExecResult
			err error
		}
		ch := make(chan outcome, 1)
		go func() {
			res, err := w.client(keyA).RunExec(t.Context(), boxA, client.ExecRequest{Cmd: "echo up; sleep 2; echo down"})
			ch <- outcome{res, err}
		}()
		waitSession(t, w)
		w.restore(boxA, known)
		o := <-ch
		var e *client.Error
		if known && (o.err != nil || o.res.Stdout != "up\ndown\n") {
			t.Errorf("known: %+v %v", o.res, o.err)
		}
		if !known && (!errors.As(o.err, &e) || e.Status != 410) {
			t.Errorf("unknown: %+v %v", o.res, o.err)
		}
	}
}

// waitSession waits for a running session that somebody follows.
func waitSession(t *testing.T, w *world) {
	t.Helper()
	for {
		list, err := w.client(keyA).ListExec(t.Context(), boxA)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.Running && s.AttachedClients > 0 {
				return
			}
		}
	}
}

// TestStopped follows a session of a sandbox that is stopped.
func TestStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conn := w.dial("/api/sandboxes/" + boxA + "/exec/" + w.start("sleep", "60"))
	if _, _, err := conn.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.stop(boxA)
	got, _, code := frames(t, conn)
	if code != client.CloseSandboxEnded || !strings.Contains(got[2], "has been stopped") {
		t.Errorf("%q %d", got, code)
	}
}
