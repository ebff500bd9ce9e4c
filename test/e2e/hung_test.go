// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// TestSandboxRunsOnAfterAHungCapture stops the engine helper in the middle of a
// capture, when the sandbox is frozen. The sandbox must run on when the helper
// is killed, when the server gives up on it, and when the server dies.
func TestSandboxRunsOnAfterAHungCapture(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	b := create(t, s)
	b.count()
	b.heap(150, 17)
	sum := b.heapSum()
	const deadline = 40 * time.Second // of the server for a capture this small, and more
	for _, c := range []struct {
		name  string
		end   func(t *testing.T, helper int)
		most  time.Duration // that the sandbox may stand still
		cause string        // in the reason of the failed checkpoint
	}{
		{"the helper is killed", func(t *testing.T, helper int) { must(t, syscall.Kill(helper, syscall.SIGKILL)) }, 10 * time.Second, "capture"},
		{"the server dies", func(t *testing.T, _ int) { crash(t, s); must(t, s.Up(t.Context())) }, 20 * time.Second, "the server ended"},
		{"the server gives up", func(*testing.T, int) {}, deadline, "deadline"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := box{t, s, b.id}
			before := b.counted()
			id, helper := b.freeze("hung")
			c.end(t, helper)
			await(t, "the hung helper is gone", func() bool { return len(running(s, "engine-helper", "capture")) == 0 })
			b.countOn(10)
			if gap := longestGap(b.ticks(), before); gap > c.most {
				t.Errorf("the sandbox stood still for %v", gap)
			} else {
				t.Logf("the sandbox stood still for %v", gap)
			}
			var cp client.Checkpoint
			await(t, "the checkpoint has failed", func() bool {
				var err error
				cp, err = api(t, s).GetCheckpoint(t.Context(), id)
				return err == nil && cp.Status == client.CheckpointFailed
			})
			if !strings.Contains(cp.ErrorMsg, c.cause) {
				t.Errorf("no %q in the reason: %s", c.cause, cp.ErrorMsg)
			}
			oc(t, s, "checkpoint", "delete", b.id, id)
			next := b.checkpoint(c.name)
			clone := spawn(t, s, next)
			if got := clone.heapSum(); got != sum {
				t.Errorf("the heap is %s, not %s", got, sum)
			}
			oc(t, s, "kill", clone.id)
		})
	}
}

// freeze begins a checkpoint and stops its helper in the middle, when the engine
// is frozen. The moment is guessed from the connections that the helper has
// made, and then checked: the sandbox must not answer. After a wrong guess the
// helper goes on, and another checkpoint is made.
func (b box) freeze(name string) (cp string, helper int) {
	b.t.Helper()
	const tries, asked, silence = 10, 20 * time.Millisecond, 3 * time.Second
	for range tries {
		c, err := api(b.t, b.s).CreateCheckpoint(b.t.Context(), b.id, client.CreateCheckpointRequest{Name: name, NoWait: true})
		must(b.t, err)
		if helper, found := connected(b.s); found {
			<-time.After(asked) // for the request to freeze
			err := syscall.Kill(helper, syscall.SIGSTOP)
			ctx, cancel := context.WithTimeout(b.t.Context(), silence)
			_, ask := api(b.t, b.s).RunExec(ctx, b.id, client.ExecRequest{Cmd: "true"})
			cancel()
			if err == nil && ask != nil {
				return c.ID, helper
			}
			_ = syscall.Kill(helper, syscall.SIGCONT) // gone is as good
		}
		await(b.t, "the checkpoint that was not caught is settled", func() bool {
			c, err = api(b.t, b.s).GetCheckpoint(b.t.Context(), c.ID)
			return err == nil && c.Status != client.CheckpointProcessing
		})
		oc(b.t, b.s, "checkpoint", "delete", b.id, c.ID)
	}
	b.t.Fatalf("in %d tries no capture was stopped while the sandbox was frozen", tries)
	return "", 0
}

// connected waits until the helper of a capture has made the connection over
// which the engine hands over its state; not found: it ended before it was seen.
func connected(s *harness.Server) (helper int, found bool) {
	const sockets = 3 // to the engine's control, and both ends of the connection
	deadline := time.Now().Add(awaitTime)
	for time.Now().Before(deadline) {
		for _, pid := range running(s, "engine-helper", "capture") {
			for time.Now().Before(deadline) {
				links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
				if err != nil || len(links) == 0 {
					return 0, false
				}
				n := 0
				for _, link := range links {
					if to, _ := os.Readlink(link); strings.HasPrefix(to, "socket:") { // error: closed
						n++
					}
				}
				if n >= sockets {
					return pid, true
				}
			}
		}
	}
	return 0, false
}

// TestNobodyIsLeftToEndAHungHold stops the helper that holds what a restore
// replaces, and ends the server: the watchdog lets the sandbox go on, and the
// next server finds it running.
func TestNobodyIsLeftToEndAHungHold(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	b := create(t, s)
	b.count()
	cp := b.checkpoint("start")
	b.heap(150, 17)
	sum := b.heapSum()
	const tries = 10
	for try := range tries {
		before := b.counted()
		if !hangRestore(t, b, cp) {
			continue // too early or too late
		}
		must(t, s.Up(t.Context()))
		b.countOn(10)
		if b.heapSum() != sum { // the restore was over before the server was ended
			b.heap(150, 17)
			continue
		}
		if got := b.counted(); got < before {
			t.Errorf("the count is %d, it was %d", got, before)
		}
		t.Logf("caught at try %d", try+1)
		return
	}
	t.Fatalf("in %d tries no held helper was stopped", tries)
}

// hangRestore begins a restore, stops the helper that freezes the running
// generation for it, ends the server, and waits until the watchdog has ended
// that helper and is gone.
func hangRestore(t *testing.T, b box, cp string) (caught bool) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = b.s.Run(context.WithoutCancel(t.Context()), nil, "checkpoint", "restore", b.id, cp) // the server ends
	}()
	var helper int
	await(t, "a helper captures what is replaced", func() bool {
		pids := running(b.s, "engine-helper", "capture")
		if len(pids) > 0 && len(running(b.s, "engine-helper", "watch")) > 0 {
			helper = pids[0]
			return true
		}
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
	if helper == 0 {
		return false
	}
	<-time.After(60 * time.Millisecond) // for the freeze
	_ = syscall.Kill(helper, syscall.SIGSTOP)
	crash(t, b.s)
	<-done
	await(t, "the watchdog has ended the helper", func() bool {
		return len(running(b.s, "engine-helper", "capture")) == 0 && len(running(b.s, "engine-helper", "watch")) == 0
	})
	return true
}
