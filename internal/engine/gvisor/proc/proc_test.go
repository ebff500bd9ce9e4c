// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tail is the stat line from field 3 on, with a start time of 12345.
const tail = " S 7 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"

func TestParseStat(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		line string
		want stat
		bad  bool
	}{
		{line: "42 (cat)" + tail, want: stat{'S', 7, 12345}},
		{line: "42 (a b)" + tail, want: stat{'S', 7, 12345}},
		{line: "42 (evil) R 1 1)" + tail + "\n", want: stat{'S', 7, 12345}},
		{line: "42 (((()))" + tail, want: stat{'S', 7, 12345}},
		{line: "42 (new\nline)" + tail, want: stat{'S', 7, 12345}},
		{line: "42 ()" + tail, want: stat{'S', 7, 12345}},
		{line: "42 (x)" + strings.Replace(tail, " S ", " Z ", 1), want: stat{'Z', 7, 12345}},
		{line: "", bad: true},
		{line: "42 (cat)", bad: true},
		{line: "42 (cat) S 7 1 1", bad: true},
		{line: "42 (cat)" + strings.Replace(tail, "12345", "-1", 1), bad: true},
		{line: "42 (cat)" + strings.Replace(tail, " S 7", " S x", 1), bad: true},
	} {
		got, err := parseStat([]byte(tt.line))
		if tt.bad != (err != nil) || err == nil && got != tt.want {
			t.Errorf("%q: %+v, %v", tt.line, got, err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (a) b)" + tail))
	f.Add([]byte("42 (a"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseStat(b) })
}

// sleeper starts a process that sleeps until it is killed.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	c := exec.Command("sleep", "600")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill() // may have ended
		_ = c.Wait()         // may have been waited for
	})
	return c
}

func within(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(30 * time.Second):
		t.Fatalf("timed out: %s", what)
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	c := sleeper(t)
	pid := c.Process.Pid
	start, err := StartTime(pid)
	if err != nil || start == 0 {
		t.Fatalf("StartTime: %d, %v", start, err)
	}
	if !Alive(pid, start) || Alive(pid, start+1) || Alive(0, start) || Alive(-1, start) {
		t.Error("Alive is wrong about a running process")
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Not waited for yet: a zombie counts as gone.
	exited, err := Exited(t.Context(), os.Getpid(), start) // some other start time: gone at once
	if err != nil {
		t.Fatal(err)
	}
	within(t, exited, "a process of another start time")
	for deadline := time.Now().Add(30 * time.Second); Alive(pid, start); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("a killed process stays alive")
		}
	}
	_ = c.Wait() // killed
	if Alive(pid, start) {
		t.Error("a process that is gone is alive")
	}
}

func TestExited(t *testing.T) {
	t.Parallel()
	c := sleeper(t)
	start, err := StartTime(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	exited, err := Exited(t.Context(), c.Process.Pid, start)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-exited:
		t.Fatal("exited while it runs")
	default:
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	within(t, exited, "exit of a killed process")
	var ws unix.WaitStatus
	if pid, err := unix.Wait4(c.Process.Pid, &ws, unix.WNOHANG, nil); err == nil && pid != 0 {
		t.Error("the process was left in the process table")
	}
	again, err := Exited(t.Context(), c.Process.Pid, start)
	if err != nil {
		t.Fatal(err)
	}
	within(t, again, "exit of a process that is gone")
}

// The watching ends with its context, without saying that the process ended.
func TestExitedEndsWithContext(t *testing.T) { // not parallel: looks at all watchers
	c := sleeper(t)
	start, err := StartTime(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	exited, err := Exited(ctx, c.Process.Pid, start)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	stacks := func() string {
		b := make([]byte, 1<<20)
		return string(b[:runtime.Stack(b, true)])
	}
	watcher := "created by github.com/opencomputer/oc/internal/engine/gvisor/proc.Exited in goroutine"
	for deadline := time.Now().Add(30 * time.Second); strings.Contains(stacks(), watcher); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("a watcher outlives its context")
		}
	}
	select {
	case <-exited:
		t.Error("exited although the process runs")
	default:
	}
}

// A zombie that nobody waits for is taken at the second look.
func TestReaper(t *testing.T) {
	c := exec.Command("true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pid := c.Process.Pid
	zombie := func() bool {
		for _, p := range zombieChildren() {
			if p == pid {
				return true
			}
		}
		return false
	}
	for deadline := time.Now().Add(30 * time.Second); !zombie(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("no zombie")
		}
	}
	var r Reaper
	r.Reap()
	if !zombie() {
		t.Fatal("taken at the first look: somebody may have been waiting for it")
	}
	r.Reap()
	if zombie() {
		t.Error("left at the second look")
	}
	_ = c.Process.Release() // it was reaped here
}

func TestSetOOMScore(t *testing.T) {
	t.Parallel()
	c := sleeper(t)
	if err := SetOOMScore(c.Process.Pid, 700); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.Process.Pid))
	if err != nil || strings.TrimSpace(string(b)) != "700" {
		t.Errorf("oom_score_adj %q, %v", b, err)
	}
}

func TestAnonymousMemory(t *testing.T) {
	t.Parallel()
	if n := AnonymousMemory(os.Getpid()); n < 64<<10 || n > 1<<40 {
		t.Errorf("this process has %d bytes", n)
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if n := AnonymousMemory(pid); n != 0 {
			t.Errorf("process %d has %d bytes", pid, n)
		}
	}
}
