// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/fault"
)

func TestThousandCommands(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < 1000; i += 8 {
				s, err := c.Start(deadline(t), agentclient.StartRequest{
					Argv: []string{"sh", "-c", "echo out-$0; echo err-$0 >&2; exit $1", strconv.Itoa(i), strconv.Itoa(i % 200)},
				})
				if err != nil {
					t.Error(err)
					return
				}
				o := collect(t, c, s.ID)
				if string(o.stdout) != fmt.Sprintf("out-%d\n", i) || string(o.stderr) != fmt.Sprintf("err-%d\n", i) ||
					o.exit != (agentclient.Exit{Code: i % 200}) || o.replayEnds != 1 {
					t.Errorf("command %d: %q %q %+v, %d replay ends", i, o.stdout, o.stderr, o.exit, o.replayEnds)
				}
			}
		})
	}
	wg.Wait()
	all, err := c.Sessions(deadline(t))
	must(t, err)
	if len(all) != 1000 {
		t.Errorf("%d sessions are listed", len(all))
	}
}

// A run is a session without input, followed from its first byte to its end,
// however often it is asked for; what cannot be started is an exit or an error
// as with a start.
func TestRun(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	req := agentclient.StartRequest{Key: "k", Argv: []string{"sh", "-c", "cat; echo out; echo err >&2; exit 3"}, Hold: true}
	var ids []string
	for range 2 {
		out, err := c.Run(deadline(t), req)
		must(t, err)
		ids = append(ids, out.Session.ID)
		o := drain(t, out)
		if string(o.stdout) != "out\n" || string(o.stderr) != "err\n" || o.exit.Code != 3 || o.replayEnds != 1 || out.From != 0 {
			t.Errorf("%+v from %d", o, out.From)
		}
		must(t, out.Close())
	}
	if ids[0] != ids[1] {
		t.Errorf("one key, sessions %v", ids)
	}
	out, err := c.Run(deadline(t), agentclient.StartRequest{Argv: []string{"no-such-program"}})
	must(t, err)
	if o := drain(t, out); o.exit.Code != 127 {
		t.Errorf("%+v", o)
	}
	if _, err := c.Run(deadline(t), agentclient.StartRequest{Argv: []string{"true"}, Cwd: "/nowhere"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a directory that there is not: %v", err)
	}
}

func TestExits(t *testing.T) {
	// What this process was started with is inherited (nohup, a shell's "&").
	signals := []string{"grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"}
	ignored, err := exec.Command(signals[0], signals[1:]...).Output()
	must(t, err)
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	notExecutable := filepath.Join(b.home, "plain")
	must(t, os.WriteFile(notExecutable, []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(b.home, "script"), []byte("echo ran $1; exit 9"), 0o755))
	must(t, os.WriteFile(filepath.Join(b.home, "lost"), []byte("#!/no/such/interpreter\n"), 0o755))
	for _, tc := range []struct {
		name           string
		req            agentclient.StartRequest
		exit           agentclient.Exit
		stdout, stderr string
	}{
		{"not found", agentclient.StartRequest{Argv: []string{"no-such-program"}}, agentclient.Exit{Code: 127}, "", "oc: no-such-program: not found\n"},
		{"path not found", agentclient.StartRequest{Argv: []string{"./nope"}}, agentclient.Exit{Code: 127}, "", "oc: ./nope: not found\n"},
		{"not executable", agentclient.StartRequest{Argv: []string{"./plain"}}, agentclient.Exit{Code: 126}, "", "oc: ./plain: permission denied\n"},
		{"directory", agentclient.StartRequest{Argv: []string{"/etc"}}, agentclient.Exit{Code: 126}, "", "oc: /etc: is a directory\n"},
		{"no interpreter", agentclient.StartRequest{Argv: []string{"./lost"}}, agentclient.Exit{Code: 127}, "", "oc: ./lost: cannot run: its interpreter was not found\n"},
		{"script without interpreter line", agentclient.StartRequest{Argv: []string{"./script", "a"}}, agentclient.Exit{Code: 9}, "ran a\n", ""},
		{"signal", agentclient.StartRequest{Argv: []string{"sh", "-c", "kill -9 $$"}}, agentclient.Exit{Code: 137, Signal: 9}, "", ""},
		{"argv kept", agentclient.StartRequest{Argv: []string{"printf", "%s|", "a b", "", "$HOME"}}, agentclient.Exit{}, "a b||$HOME|", ""},
		{"timeout", agentclient.StartRequest{Argv: []string{"sh", "-c", "echo x; sleep 100"}, Timeout: 0.3}, agentclient.Exit{Code: 137, Signal: 9, TimedOut: true}, "x\n", ""},
		{"other user", agentclient.StartRequest{Argv: []string{"id", "-u"}, User: "nobody", Cwd: "/"}, agentclient.Exit{}, "65534\n", ""},
		{"numeric user", agentclient.StartRequest{Argv: []string{"sh", "-c", "id -u; id -g"}, User: "4711", Cwd: "/"}, agentclient.Exit{}, "4711\n4711\n", ""},
		{
			"environment",
			agentclient.StartRequest{Argv: []string{"env"}, Env: []string{"A=1", "LANG=de", "A=2"}},
			agentclient.Exit{},
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=" + b.home + "\nUSER=root\nLOGNAME=root\nLANG=de\nA=2\n", "",
		},
		{"no more signals ignored than here", agentclient.StartRequest{Argv: signals}, agentclient.Exit{}, string(ignored), ""},
		{"not the control socket", agentclient.StartRequest{Argv: []string{"sh", "-c", "ls -l /proc/self/fd | grep -c 'fd/[012] .*socket:\\|[012] -> socket:'"}}, agentclient.Exit{Code: 1}, "0\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := c.Start(deadline(t), tc.req)
			must(t, err)
			o := collect(t, c, s.ID)
			if o.exit != tc.exit || string(o.stdout) != tc.stdout || string(o.stderr) != tc.stderr {
				t.Errorf("got %+v\n%q\n%q", o.exit, o.stdout, o.stderr)
			}
		})
	}
}

func TestStartRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	for name, req := range map[string]agentclient.StartRequest{
		"no command":  {},
		"no such cwd": {Argv: []string{"true"}, Cwd: "/no/such"},
		"cwd a file":  {Argv: []string{"true"}, Cwd: "/etc/passwd"},
		"no user":     {Argv: []string{"true"}, User: "nobody-at-all"},
		"bad env":     {Argv: []string{"true"}, Env: []string{"X"}},
		"NUL":         {Argv: []string{"a\x00b"}},
		"timeout":     {Argv: []string{"true"}, Timeout: -1},
		"output":      {Argv: []string{"true"}, Output: 1 << 30},
		"too large":   {Argv: []string{"true", strings.Repeat("x", 70000)}},
	} {
		if _, err := c.Start(deadline(t), req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	closed := filepath.Join(b.home, "closed")
	must(t, os.MkdirAll(filepath.Join(closed, "in"), 0o755))
	must(t, os.Chmod(closed, 0o700))
	for _, dir := range []string{closed, filepath.Join(closed, "in")} {
		_, err := c.Start(deadline(t), agentclient.StartRequest{Argv: []string{"/bin/true"}, User: "nobody", Cwd: dir})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "directory "+dir+" may not be entered") {
			t.Errorf("a working directory that is not the user's: %v", err)
		}
	}
	if _, err := c.Session(deadline(t), "es-none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown session: %v", err)
	}
	if _, err := c.Attach(deadline(t), "es-none", agentclient.From{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("attach to unknown session: %v", err)
	}
}

func TestStartIsIdempotent(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	var wg sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		wg.Go(func() {
			s, err := c.Start(deadline(t), agentclient.StartRequest{Key: "k", Argv: []string{"sh", "-c", "echo x >> once"}})
			if err != nil {
				t.Error(err)
			}
			ids[i] = s.ID
		})
	}
	wg.Wait()
	collect(t, c, ids[0])
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("ids differ: %v", ids)
		}
	}
	if got, err := os.ReadFile(filepath.Join(b.home, "once")); string(got) != "x\n" {
		t.Errorf("ran %q times, %v", got, err)
	}
}

func TestSlowReaderLosesNothing(t *testing.T) {
	t.Parallel()
	const size = 100 << 20
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, fmt.Sprintf("read x; head -c %d /dev/urandom | tee out.bin", size))
	out, err := c.Attach(deadline(t), s.ID, agentclient.From{})
	must(t, err)
	defer out.Close()
	_, err = c.WriteStdin(deadline(t), s.ID, 0, []byte("\n"))
	must(t, err)
	h, n, events := sha256.New(), 0, 0
	for {
		ev, err := out.Next(deadline(t))
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if ev.Kind == agentclient.EventOutput {
			h.Write(ev.Data)
			n += len(ev.Data)
			if events++; events%200 == 0 { // meanwhile others are served
				if _, err := c.Session(deadline(t), s.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	want, err := os.ReadFile(filepath.Join(b.home, "out.bin"))
	must(t, err)
	if sum := sha256.Sum256(want); n != size || !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Errorf("got %d bytes with another hash", n)
	}
	if got := rss(t, b.pid); got > 64<<20 {
		t.Errorf("the agent takes %d MB", got>>20)
	}
}

func TestSeveralReaders(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, "read x; seq 300000; seq 5 >&2")
	var wg sync.WaitGroup
	var results [4]outcome
	for i := range results {
		out, err := c.Attach(deadline(t), s.ID, agentclient.From{Place: wire.FromTimeline})
		must(t, err)
		wg.Go(func() {
			defer out.Close()
			results[i] = drain(t, out)
		})
	}
	_, err := c.WriteStdin(deadline(t), s.ID, 0, []byte("\n"))
	must(t, err)
	wg.Wait()
	for i, o := range results {
		if len(o.stdout) != len(results[0].stdout) || !bytes.Equal(o.stdout, results[0].stdout) ||
			!bytes.HasSuffix(o.stdout, []byte("\n300000\n")) || string(o.stderr) != "1\n2\n3\n4\n5\n" {
			t.Errorf("reader %d got %d bytes, %q", i, len(o.stdout), o.stderr)
		}
	}
}

func TestScrollbackDropsTheOldest(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, "seq 1000000")
	eventually(t, "the end of the process without any reader", func() bool {
		i, err := c.Session(deadline(t), s.ID)
		return err == nil && i.Exit != nil
	})
	out, err := c.Attach(deadline(t), s.ID, agentclient.From{Place: wire.FromOffset})
	must(t, err)
	defer out.Close()
	o := drain(t, out)
	if out.Missing == 0 || out.Missing != out.From || len(o.stdout) != 1<<20 || !bytes.HasSuffix(o.stdout, []byte("\n1000000\n")) {
		t.Errorf("missing %d, from %d, %d bytes", out.Missing, out.From, len(o.stdout))
	}
	if _, err := c.Attach(deadline(t), s.ID, agentclient.From{Place: wire.FromOffset, Offset: 1 << 40}); !fault.Is(err, fault.Invalid) {
		t.Errorf("attach beyond the end: %v", err)
	}
	big, err := c.Start(deadline(t), agentclient.StartRequest{Argv: []string{"seq", "1000000"}, Output: 32 << 20})
	must(t, err)
	if o := collect(t, c, big.ID); !bytes.HasPrefix(o.stdout, []byte("1\n2\n")) || len(o.stdout) != 6888896 {
		t.Errorf("large log: %d bytes", len(o.stdout))
	}
}

func TestStdin(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, "cat; echo end")
	off := int64(0)
	for _, p := range []string{"hello ", "wor", "world\n"} { // the last overlaps
		if p == "world\n" {
			off -= 3
		}
		n, err := c.WriteStdin(deadline(t), s.ID, off, []byte(p))
		must(t, err)
		off = n
	}
	if off != 12 {
		t.Errorf("offset %d", off)
	}
	if _, err := c.WriteStdin(deadline(t), s.ID, 100, []byte("x")); !fault.Is(err, fault.Invalid) {
		t.Errorf("a gap: %v", err)
	}
	must(t, c.CloseStdin(deadline(t), s.ID))
	must(t, c.CloseStdin(deadline(t), s.ID))
	if _, err := c.WriteStdin(deadline(t), s.ID, 0, []byte("hello")); err != nil {
		t.Errorf("repeated write after the close: %v", err)
	}
	if o := collect(t, c, s.ID); string(o.stdout) != "hello world\nend\n" {
		t.Errorf("stdout %q", o.stdout)
	}
	if _, err := c.WriteStdin(deadline(t), s.ID, off, []byte("x")); !fault.Is(err, fault.Conflict) {
		t.Errorf("write after the end: %v", err)
	}
}

func TestStdinBackPressure(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, "read x < /proc/self/fd/0 2>/dev/null; while [ ! -e go ]; do sleep 0.02; done; sha256sum")
	data := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MB
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := c.WriteStdin(ctx, s.ID, 0, append([]byte("\n"), data...)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a full pipe: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(b.home, "go"), nil, 0o644))
	// Wherever it was interrupted, a repetition from the start loses and doubles nothing.
	_, err := c.WriteStdin(deadline(t), s.ID, 0, append([]byte("\n"), data...))
	must(t, err)
	must(t, c.CloseStdin(deadline(t), s.ID))
	o := collect(t, c, s.ID)
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); string(o.stdout) != want {
		t.Errorf("got %q, want %q", o.stdout, want)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s, err := c.Start(deadline(t), agentclient.StartRequest{Argv: []string{"sh"}, TTY: &agentclient.Size{Cols: 81, Rows: 25}, Env: []string{"PS1=$ "}})
	must(t, err)
	out, err := c.Attach(deadline(t), s.ID, agentclient.From{})
	must(t, err)
	defer out.Close()
	var off int64
	typed := func(text string) {
		t.Helper()
		off, err = c.WriteStdin(deadline(t), s.ID, off, []byte(text))
		must(t, err)
	}
	typed("stty size; tty; echo $TERM\n")
	got := waitOutput(t, out, "xterm-256color\r\n")
	if !strings.Contains(got, "25 81\r\n") || !strings.Contains(got, "/dev/pts/") {
		t.Errorf("terminal says %q", got)
	}
	must(t, c.Resize(deadline(t), s.ID, agentclient.Size{Cols: 132, Rows: 43}))
	typed("stty size\n")
	waitOutput(t, out, "43 132\r\n")
	typed("sleep 100\n")
	waitOutput(t, out, "sleep 100\r\n")
	eventually(t, "sleep to run", func() bool { return len(descendants(s.PID)) > 0 })
	typed("\x03") // reaches the foreground job only
	typed("echo still-$((1+1))\n")
	waitOutput(t, out, "still-2\r\n")
	must(t, c.CloseStdin(deadline(t), s.ID))
	if o := drain(t, out); o.exit.Code != 0 && o.exit.Code != 130 {
		t.Errorf("exit %+v", o.exit)
	}
	if err := c.Resize(deadline(t), s.ID, agentclient.Size{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("resize after the end: %v", err)
	}
	p := start(t, c, "true")
	if err := c.Resize(deadline(t), p.ID, agentclient.Size{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("resize without terminal: %v", err)
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	s := start(t, c, "trap 'echo int; exit 3' INT; echo ready; while :; do sleep 0.05; done")
	out, err := c.Attach(deadline(t), s.ID, agentclient.From{})
	must(t, err)
	defer out.Close()
	waitOutput(t, out, "ready")
	must(t, c.Signal(deadline(t), s.ID, 2))
	if o := drain(t, out); o.exit.Code != 3 || !bytes.HasSuffix(o.stdout, []byte("int\n")) {
		t.Errorf("%+v %q", o.exit, o.stdout)
	}
	if err := c.Signal(deadline(t), s.ID, 9); !fault.Is(err, fault.Conflict) {
		t.Errorf("signal after the end: %v", err)
	}
	if err := c.Signal(deadline(t), s.ID, 99); !fault.Is(err, fault.Invalid) {
		t.Errorf("signal 99: %v", err)
	}
}

func TestOrphans(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	// 50 processes whose parents have gone, with statuses of their own.
	s := start(t, c, "for i in $(seq 50); do (sh -c 'sleep 0.1; exit 77' >/dev/null 2>&1 &) ; done; exit 5")
	if o := collect(t, c, s.ID); o.exit.Code != 5 {
		t.Errorf("exit %+v", o.exit)
	}
	eventually(t, "all orphans to be reaped", func() bool { return len(descendants(b.pid)) == 0 })
}

func TestLeftBehindProcess(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	before := time.Now()
	s := start(t, c, "(while [ ! -e stop ]; do echo tick 2>/dev/null; sleep 1; done; echo lived > proof) & echo main; exit 4")
	o := collect(t, c, s.ID)
	if o.exit.Code != 4 || !bytes.Contains(o.stdout, []byte("main\n")) {
		t.Errorf("%+v %q", o.exit, o.stdout)
	}
	if took := time.Since(before); took > 8*time.Second {
		t.Errorf("the exit came after %v", took)
	}
	must(t, os.WriteFile(filepath.Join(b.home, "stop"), nil, 0o644))
	eventually(t, "the process left behind to live on", func() bool {
		got, _ := os.ReadFile(filepath.Join(b.home, "proof"))
		return string(got) == "lived\n"
	})
}

// rss is a process's resident memory.
func rss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	must(t, err)
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	must(t, err)
	return pages * os.Getpagesize()
}
