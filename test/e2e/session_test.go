// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
)

// transcript is the output of a session running testdata/lines.py, as a client
// that follows it over restores puts it together.
type transcript struct {
	t      testing.TB
	stream *client.ExecStream
	data   []byte // from offset 0 of the present timeline
	first  string // timeline
	exit   int
	ended  bool
}

// follow attaches to a session from the start of what it kept.
func (b box) follow(session string) *transcript {
	b.t.Helper()
	stream, err := api(b.t, b.s).AttachExec(b.t.Context(), b.id, session, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { stream.Close() })
	return &transcript{t: b.t, stream: stream}
}

// step reads one event.
func (tr *transcript) step() {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), awaitTime)
	defer cancel()
	ev, err := tr.stream.Next(ctx)
	if err != nil {
		tr.t.Fatalf("after %d bytes: %v", len(tr.data), err)
	}
	switch ev.Kind {
	case client.EventPosition:
		if ev.Position.Offset > int64(len(tr.data)) {
			tr.t.Fatalf("the output goes on at %d, but only %d bytes were given", ev.Position.Offset, len(tr.data))
		}
		if tr.first == "" {
			tr.first = ev.Position.Timeline
		}
		tr.data = tr.data[:ev.Position.Offset]
	case client.EventStdout:
		tr.data = append(tr.data, ev.Data...)
	case client.EventExit:
		tr.exit, tr.ended = ev.ExitCode, true
	}
}

// lines reads until so many lines are there, and checks each of them.
func (tr *transcript) lines(n int) {
	tr.t.Helper()
	for bytes.Count(tr.data, []byte("\n")) < n {
		tr.step()
	}
	checkLines(tr.t, tr.data)
}

// lineLength is how many bytes each line of lines.py has.
const lineLength = 14

// checkLines checks that lines.py's output has no byte too much or too few.
func checkLines(t testing.TB, data []byte) {
	t.Helper()
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if want := fmt.Sprintf("line %08d\n", n); !strings.HasPrefix(want, string(line)) {
			t.Fatalf("line %d is %q", n, line)
		}
	}
}

// TestSessionIsAttachedInTheCloneAndOverARestore starts a session, checkpoints,
// and follows it at once in the source, over an in-place restore, and in a clone.
func TestSessionIsAttachedInTheCloneAndOverARestore(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.push("lines.py")
	session := b.start("python3", "lines.py", "0.02", "0")
	tr := b.follow(session)
	tr.lines(100)
	cp := b.checkpoint("session")
	timeline := tr.stream.Position().Timeline
	if timeline != tr.first {
		t.Errorf("the checkpoint started a new timeline, %s after %s", timeline, tr.first)
	}

	clone := spawn(t, shared, cp)
	copied := clone.follow(session)
	copied.lines(500)
	if copied.first == timeline {
		t.Errorf("the clone is on the source's timeline %s", timeline)
	}

	tr.lines(len(copied.data)/lineLength + 1) // beyond the checkpoint
	before := len(tr.data)
	b.restore(cp)
	for tr.stream.Position().Timeline == timeline {
		tr.step() // the rest of the old timeline, then the start of the new one
	}
	if at := len(tr.data); at < 100*lineLength || at >= before {
		t.Errorf("after the restore the output goes on at %d of %d", at, before)
	}
	tr.lines(before/lineLength + 100)
}

// TestSessionThatTheCheckpointDoesNotKnowIsClosed says so to its clients.
func TestSessionThatTheCheckpointDoesNotKnowIsClosed(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	cp := b.checkpoint("before")
	session := b.start("sleep", "1000")
	tr := b.follow(session)
	attached := make(chan string, 1)
	go func() {
		out, err := shared.Run(t.Context(), nil, "exec", "attach", b.id, session)
		attached <- fmt.Sprint(out, err)
	}()
	await(t, "both clients are attached", func() bool { return strings.Contains(oc(t, shared, "exec", "list", b.id), "clients=2") })
	b.restore(cp)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), awaitTime)
		_, err := tr.stream.Next(ctx)
		cancel()
		var closed *client.Error
		if err == nil {
			continue
		}
		if !errors.As(err, &closed) || !strings.Contains(closed.Message, "restored") {
			t.Errorf("closed with %v", err)
		}
		break
	}
	if said := <-attached; !strings.Contains(said, "restored") || !strings.Contains(said, "(exit code 3)") && !strings.Contains(said, "(exit code 255)") {
		t.Errorf("oc exec attach ended with: %s", said)
	}
	if list := oc(t, shared, "exec", "list", b.id); strings.Contains(list, session) {
		t.Errorf("the restored sandbox lists it: %s", list)
	}
}

// terminal is a client of a PTY.
type terminal struct {
	t      testing.TB
	stream *client.PTYStream
	chunks chan string
	seen   string
}

// terminalOf opens a PTY with a program in it and gives its session too.
func (b box) terminalOf(program string) (*terminal, string) {
	b.t.Helper()
	pty, err := api(b.t, b.s).OpenPTY(b.t.Context(), b.id, client.PTYRequest{Cols: 100, Rows: 30, Shell: program})
	if err != nil {
		b.t.Fatal(err)
	}
	return b.attachTerminal(pty.SessionID), pty.SessionID
}

func (b box) attachTerminal(session string) *terminal {
	b.t.Helper()
	stream, err := api(b.t, b.s).AttachPTY(b.t.Context(), b.id, session)
	if err != nil {
		b.t.Fatal(err)
	}
	term := &terminal{t: b.t, stream: stream, chunks: make(chan string, 1024)}
	go func() {
		defer close(term.chunks)
		buf := make([]byte, 4096)
		for {
			n, err := stream.Read(buf)
			if err != nil {
				return
			}
			term.chunks <- string(buf[:n])
		}
	}()
	b.t.Cleanup(func() { stream.Close() })
	return term
}

// says types a line and waits for an answer that comes after what was there.
func (term *terminal) says(line, want string) {
	term.t.Helper()
	from := len(term.seen)
	if _, err := io.WriteString(term.stream, line+"\r"); err != nil {
		term.t.Fatal(err)
	}
	timeout := time.After(awaitTime)
	for !strings.Contains(term.seen[from:], want) {
		select {
		case chunk, ok := <-term.chunks:
			if !ok {
				term.t.Fatalf("the terminal was closed after %q", term.seen[from:])
			}
			term.seen += chunk
		case <-timeout:
			term.t.Fatalf("%q was answered with %q, not %q", line, term.seen[from:], want)
		}
	}
}

// TestInterpretersInATerminalKeepTheirState types into the same python prompt
// in the source, in the restored sandbox and in a clone.
func TestInterpretersInATerminalKeepTheirState(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	term, session := b.terminalOf("/usr/bin/python3")
	term.says("answer = 6 * 7; big = list(range(100000))", ">>>")
	term.says("def f(x): return x + answer", "...")
	term.says("", ">>>")
	cp := b.checkpoint("repl")
	term.says("answer = 0; print('changed', f(1))", "changed 1")
	clone := spawn(t, shared, cp)
	clone.attachTerminal(session).says("print('clone', f(1), sum(big))", "clone 43 4999950000")
	b.restore(cp)
	b.attachTerminal(session).says("print('restored', f(1), sum(big))", "restored 43 4999950000")
}
