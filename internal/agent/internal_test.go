// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/agent/wire"
)

func never() error { return nil }

func from(pos int64) func(int64, int64) (int64, error) {
	return func(int64, int64) (int64, error) { return pos, nil }
}

// check compares a log with all that was ever put into it.
func check(t *testing.T, l *outlog, all []byte, streams []wire.Stream) {
	t.Helper()
	start, end, _ := l.extent()
	if end != int64(len(all)) || end-start > int64(l.limit) {
		t.Fatalf("log keeps %d..%d of %d", start, end, len(all))
	}
	r, missing, _, err := l.attach(from(0))
	if err != nil || missing != start {
		t.Fatalf("attach: %d missing, %v", missing, err)
	}
	defer l.detach(r)
	buf := make([]byte, wire.MaxChunk)
	for pos := start; pos < end; {
		s, off, n, err := l.next(r, buf, never)
		if err != nil || off != pos || !bytes.Equal(buf[:n], all[off:off+int64(n)]) {
			t.Fatalf("at %d: offset %d, %d bytes, %v", pos, off, n, err)
		}
		for i := range n {
			if streams[off+int64(i)] != s {
				t.Fatalf("byte %d has the wrong stream", off+int64(i))
			}
		}
		pos += int64(n)
	}
}

func TestOutlogAgainstModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		l := newOutlog(minOutput)
		var all []byte
		var streams []wire.Stream
		for i := range 4000 {
			n := 1 + rnd.IntN(1+rnd.IntN(200)*int(seed+1))
			p := make([]byte, n)
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
			s := wire.Stdout + wire.Stream(rnd.IntN(2))
			l.append(s, p)
			all = append(all, p...)
			for range p {
				streams = append(streams, s)
			}
			if i%500 == 0 {
				check(t, l, all, streams)
			}
		}
		l.close()
		check(t, l, all, streams)
	}
}

// TestOutlogBoundsRuns alternates single bytes of both streams.
func TestOutlogBoundsRuns(t *testing.T) {
	t.Parallel()
	l := newOutlog(minOutput)
	var all []byte
	var streams []wire.Stream
	for i := range 100_000 {
		s := wire.Stdout + wire.Stream(i%2)
		l.append(s, []byte{byte(i)})
		all, streams = append(all, byte(i)), append(streams, s)
	}
	if len(l.runs) > minOutput/bytesPerRun {
		t.Errorf("%d runs", len(l.runs))
	}
	check(t, l, all, streams)
}

func TestOutlogGrowsLazily(t *testing.T) {
	t.Parallel()
	l := newOutlog(maxOutput)
	if len(l.buf) != 0 {
		t.Errorf("an empty log holds %d bytes", len(l.buf))
	}
	l.append(wire.Stdout, []byte("x"))
	if len(l.buf) > 2*firstBuffer {
		t.Errorf("one byte takes %d", len(l.buf))
	}
	l.close()
	if len(l.buf) != 1 {
		t.Errorf("a closed log of one byte takes %d", len(l.buf))
	}
	if l.forget() != 1 || len(l.buf) != 0 {
		t.Error("not forgotten")
	}
	r, missing, _, err := l.attach(from(0))
	if err != nil || missing != 1 {
		t.Errorf("%d missing, %v", missing, err)
	}
	if _, _, _, err := l.next(r, make([]byte, 1), never); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

// TestOutlogCutsStalledReader counts ticks by hand: only a reader that holds
// the process up and takes nothing is cut.
func TestOutlogCutsStalledReader(t *testing.T) {
	t.Parallel()
	l := newOutlog(minOutput)
	stalled, _, _, _ := l.attach(from(0))
	ahead, _, _, _ := l.attach(from(0))
	l.append(wire.Stdout, bytes.Repeat([]byte("x"), 2*minOutput))
	if _, end, _ := l.extent(); end != minOutput {
		t.Fatalf("the log took %d bytes", end)
	}
	buf := make([]byte, wire.MaxChunk)
	for range 12 { // more than what may be on the way
		if _, _, _, err := l.next(ahead, buf, never); err != nil {
			t.Fatal(err)
		}
	}
	waited := make(chan struct{})
	go func() {
		l.waitRoom()
		close(waited)
	}()
	for range stallTicks + 2 {
		l.tickNow()
	}
	select {
	case <-waited:
	case <-time.After(10 * time.Second):
		t.Fatal("the process is still held up")
	}
	if _, _, _, err := l.next(stalled, buf, never); !errors.Is(err, errReaderCut) || !strings.Contains(err.Error(), "attach again") {
		t.Errorf("stalled reader: %v", err)
	}
	l.append(wire.Stdout, []byte("y"))
	last := byte(0)
	for last != 'y' {
		_, _, n, err := l.next(ahead, buf, never)
		if err != nil {
			t.Fatalf("reader that keeps up: %v", err)
		}
		last = buf[n-1]
	}
}

// tickNow is a tick while a pump waits, without the clock.
func (l *outlog) tickNow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.countStall()
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost\n127.0.1.1 old\n"), "name")
	f.Add([]byte(""), "name")
	f.Add([]byte("0"), "0") // was not idempotent
	f.Fuzz(func(t *testing.T, old []byte, name string) {
		if checkIdentity(wire.Identity{Hostname: name}) != nil || name == "" {
			return
		}
		once := hosts(old, name)
		if !bytes.Contains(once, []byte("127.0.1.1\t"+name+"\n")) {
			t.Fatalf("%q", once)
		}
		if twice := hosts(once, name); !bytes.Equal(once, twice) {
			t.Fatalf("not idempotent: %q, %q", once, twice)
		}
	})
}

func TestEnvironmentAndProgram(t *testing.T) {
	t.Parallel()
	env := environment(account{name: "u", home: "/h"}, true, []string{"TERM=dumb", "X=1", "X=2", "PATH=/nowhere:/bin"})
	want := "PATH=/nowhere:/bin|HOME=/h|USER=u|LOGNAME=u|LANG=C.UTF-8|TERM=dumb|X=2"
	if got := strings.Join(env, "|"); got != want {
		t.Errorf("got %s", got)
	}
	if p, err := program("sh", env, "/"); p != "/bin/sh" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
	if p, err := program("bin/sh", env, "/"); p != "/bin/sh" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
}

func TestIsHostname(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"sb-01234567": true, "a": true, "A.b-c.9": true, "": false, "-a": false, "a-": false, "a..b": false, ".a": false,
		"a_b": false, "a b": false, "ä": false, "a\n": false, strings.Repeat("a", 65): false, "a[": false, "a@": false,
	} {
		if isHostname(name) != want {
			t.Errorf("isHostname(%q) = %v", name, !want)
		}
	}
}
