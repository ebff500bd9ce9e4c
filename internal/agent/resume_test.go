// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/fault"
)

// TestNewPeers replaces the peer again and again in the middle of a busy
// output; what all peers together read must be the output, byte for byte.
func TestNewPeers(t *testing.T) {
	t.Parallel()
	const lines = 400000
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, fmt.Sprintf("read x; seq %d", lines))
	_, err := c.WriteStdin(deadline(t), s.ID, 0, []byte("\n"))
	must(t, err)
	var got []byte
	var offset int64
	for round := 0; ; round++ {
		out, err := c.Attach(deadline(t), s.ID, agentclient.From{Place: wire.FromOffset, Offset: offset, Timeline: "t1"})
		must(t, err)
		if out.Missing != 0 {
			t.Fatalf("round %d: %d bytes were dropped", round, out.Missing)
		}
		ended := false
		for n := 0; n < 10; n++ {
			ev, err := out.Next(deadline(t))
			must(t, err)
			if ev.Kind == agentclient.EventExit {
				ended = true
				break
			}
			got = append(got, ev.Data...)
			offset += int64(len(ev.Data))
		}
		if ended {
			break
		}
		c = b.client("t1") // while the agent goes on sending to the old one
		if _, err := out.Next(deadline(t)); err != nil && !errors.Is(err, io.EOF) && !fault.Is(err, fault.Unavailable) {
			t.Fatalf("the old reader: %v", err)
		}
	}
	var want bytes.Buffer
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&want, i)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
}

// TestSameClientGreetsAgain checks that calls in progress end with a Hello.
func TestSameClientGreetsAgain(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, counter("0.01"))
	out, err := c.Attach(deadline(t), s.ID, agentclient.From{})
	must(t, err)
	waitOutput(t, out, "line-3\n")
	_, err = c.Hello(deadline(t), agentclient.HelloRequest{Timeline: "t1"})
	must(t, err)
	for err == nil {
		_, err = out.Next(deadline(t))
	}
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("a call of before: %v", err)
	}
	eventually(t, "the old reader to be gone", func() bool {
		i, err := c.Session(deadline(t), s.ID)
		return err == nil && i.Attached == 0
	})
}

func TestTimelines(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, "echo one; read x; echo two; read x")
	out, err := c.Attach(deadline(t), s.ID, agentclient.From{})
	must(t, err)
	waitOutput(t, out, "one\n")
	i, err := c.Session(deadline(t), s.ID)
	must(t, err)
	if i.Timeline != "t1" || i.TimelineStart != 0 || i.OutputEnd != 4 {
		t.Errorf("before: %+v", i)
	}

	c = b.client("t2") // restored, or spawned
	i, err = c.Session(deadline(t), s.ID)
	must(t, err)
	if i.Timeline != "t2" || i.TimelineStart != 4 {
		t.Errorf("after: %+v", i)
	}
	_, err = c.WriteStdin(deadline(t), s.ID, i.StdinOffset, []byte("\n"))
	must(t, err)
	for _, tc := range []struct {
		from agentclient.From
		want string
	}{
		{agentclient.From{}, "one\ntwo\n"},
		{agentclient.From{Place: wire.FromTimeline}, "two\n"},
		{agentclient.From{Place: wire.FromOffset, Offset: 2, Timeline: "t1"}, "e\ntwo\n"},
		{agentclient.From{Place: wire.FromOffset, Offset: 999, Timeline: "t1"}, "two\n"}, // went on in another history
	} {
		out, err := c.Attach(deadline(t), s.ID, tc.from)
		must(t, err)
		if got := waitOutput(t, out, "two\n"); got != tc.want {
			t.Errorf("from %+v: %q", tc.from, got)
		}
		out.Close()
	}
	c = b.client("t2") // another server, the same history
	if i, err := c.Session(deadline(t), s.ID); err != nil || i.TimelineStart != 4 {
		t.Errorf("after a reconnect: %+v, %v", i, err)
	}
}

// TestUploadEndsWithPeer checks that a file that was being written when the
// peer went is not there, nor is a part of it.
func TestUploadEndsWithPeer(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	r, w := io.Pipe()
	result := make(chan error, 1)
	go func() { result <- c.WriteFile(t.Context(), "half", 0, r) }()
	_, err := w.Write(bytes.Repeat([]byte("x"), 100000))
	must(t, err)
	c = b.client("t1")
	eventually(t, "the temporary file to vanish", func() bool {
		e, err := os.ReadDir(b.home)
		return err == nil && len(e) == 0
	})
	w.Close()
	if err := <-result; !fault.Is(err, fault.Unavailable) {
		t.Errorf("write: %v", err)
	}
	must(t, c.WriteFile(deadline(t), "half", 0, strings.NewReader("whole")))
	if got, err := os.ReadFile(filepath.Join(b.home, "half")); string(got) != "whole" {
		t.Errorf("file: %q, %v", got, err)
	}
}

// TestBulkDoesNotBlockOthers stalls one reader; everything else must go on.
func TestBulkDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	must(t, os.WriteFile(filepath.Join(b.home, "big"), make([]byte, 8<<20), 0o644))
	stalled, _, err := c.ReadFile(t.Context(), "big")
	must(t, err)
	defer stalled.Close()
	s := start(t, c, "yes")
	out, err := c.Attach(deadline(t), s.ID, agentclient.From{})
	must(t, err)
	defer out.Close()
	for range 100 {
		if o := collect(t, c, start(t, c, "echo hi").ID); string(o.stdout) != "hi\n" {
			t.Fatalf("%q", o.stdout)
		}
	}
	if n, err := io.Copy(io.Discard, stalled); n != 8<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
