// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent"
	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
)

// asAgent makes the test binary be an agent, on the root directory it names.
const asAgent = "OC_TEST_AGENT_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(asAgent); root != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		agent.New(agent.Config{Root: root, Build: "test", Log: log}).Run()
	}
	os.Exit(m.Run())
}

// box is an agent that runs as an ordinary process, on a root directory of its
// own for what it changes in the system.
type box struct {
	t    *testing.T
	root string
	home string
	pid  int
	host *os.File
	peer *agentclient.Client
}

func newBox(t *testing.T) *box {
	t.Helper()
	root := t.TempDir()
	b := &box{t: t, root: root, home: filepath.Join(root, "root")}
	for _, d := range []string{"etc", "root", "run"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nowhere:/bin/sh\n"), 0o644))
	host, guest, err := agentclient.Pair()
	must(t, err)
	b.host = host
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asAgent+"="+root)
	cmd.Stdin = guest
	var log bytes.Buffer
	cmd.Stderr = &log
	must(t, cmd.Start())
	guest.Close()
	b.pid = cmd.Process.Pid
	t.Cleanup(func() {
		for _, pid := range descendants(b.pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		host.Close()
		if strings.Contains(log.String(), "DATA RACE") || t.Failed() {
			t.Errorf("log of the agent:\n%s", log.String())
		}
	})
	return b
}

// client connects a new peer to the agent, in place of the one before.
func (b *box) client(timeline string) *agentclient.Client {
	b.t.Helper()
	if b.peer != nil {
		must(b.t, b.peer.Close())
	}
	c, err := agentclient.New(b.host, slog.New(slog.DiscardHandler))
	must(b.t, err)
	b.peer = c
	b.t.Cleanup(func() { c.Close() })
	ack, err := c.Hello(deadline(b.t), agentclient.HelloRequest{Generation: "g-1", Timeline: timeline})
	must(b.t, err)
	if ack.Version != wire.Version || ack.PID != b.pid || ack.Build != "test" || ack.Timeline != timeline {
		b.t.Fatalf("ack = %+v", ack)
	}
	return c
}

// start starts a shell command.
func start(t *testing.T, c *agentclient.Client, script string) agentclient.SessionInfo {
	t.Helper()
	s, err := c.Start(deadline(t), agentclient.StartRequest{Argv: []string{"sh", "-c", script}})
	must(t, err)
	return s
}

// outcome is all that came of a session.
type outcome struct {
	stdout, stderr []byte
	exit           agentclient.Exit
	replayEnds     int
}

// collect reads a session's output from its beginning to its end.
func collect(t *testing.T, c *agentclient.Client, id string) outcome {
	t.Helper()
	out, err := c.Attach(deadline(t), id, agentclient.From{})
	must(t, err)
	defer out.Close()
	return drain(t, out)
}

func drain(t *testing.T, out *agentclient.Output) (o outcome) {
	t.Helper()
	for {
		ev, err := out.Next(deadline(t))
		if errors.Is(err, io.EOF) {
			return o
		}
		must(t, err)
		switch ev.Kind {
		case agentclient.EventReplayEnd:
			o.replayEnds++
		case agentclient.EventExit:
			o.exit = *ev.Exit
		case agentclient.EventOutput:
			if ev.Stream == agentclient.Stdout {
				o.stdout = append(o.stdout, ev.Data...)
			} else {
				o.stderr = append(o.stderr, ev.Data...)
			}
		}
	}
}

// waitOutput reads until the output contains a text.
func waitOutput(t *testing.T, out *agentclient.Output, text string) string {
	t.Helper()
	var got []byte
	for !bytes.Contains(got, []byte(text)) {
		ev, err := out.Next(deadline(t))
		if err != nil || ev.Kind == agentclient.EventExit {
			t.Fatalf("after %q: %+v, %v", got, ev, err)
		}
		got = append(got, ev.Data...)
	}
	return string(got)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("in vain: %s", what)
		}
	}
}

// deadline bounds one step of a test.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// descendants finds all processes below pid.
func descendants(pid int) (all []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		after := string(b[bytes.LastIndexByte(b, ')')+1:])
		f := strings.Fields(after)
		if len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			all = append(append(all, child), descendants(child)...)
		}
	}
	return all
}

// counter is a script that prints numbered lines for ever.
func counter(every string) string {
	return fmt.Sprintf("i=0; while :; do i=$((i+1)); echo line-$i; sleep %s; done", every)
}
