// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
)

// The helper that captured a generation captures it again, in an arena of its own
// each time, and goes with the engine or the generation. One that has died meanwhile
// is replaced.
func TestHelperStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := hostIn(t, dir)
	defer d.Close()
	staying := func(what string, want int) []int {
		t.Helper()
		var pids []int
		enginetest.Eventually(t, what, func() bool {
			hs := helpersOf(dir)
			maps.DeleteFunc(hs, func(_ int, kind string) bool { return kind != "staying" })
			pids = slices.Collect(maps.Keys(hs))
			return len(pids) == want
		})
		return pids
	}
	spec := enginetest.Spec(t, enginetest.Shape())
	host, guest := enginetest.Pair(t)
	p, err := d.Start(t.Context(), spec, guest)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Destroy(context.WithoutCancel(t.Context()), p); err != nil {
			t.Error(err)
		}
	}()
	defer host.Close()
	capture := func() *engine.Capture {
		t.Helper()
		c, err := d.Capture(t.Context(), p, inMemory)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := capture()
	defer first.Close()
	one := staying("a helper stays", 1)
	was := imageOf(t, first, nil)
	im := was
	for range 3 { // with and without a base
		capture().Close()
		c, err := d.Capture(t.Context(), p, on(im))
		if err != nil || c.Copied == nil {
			t.Fatal(err)
		}
		im = imageOf(t, c, im)
		c.Close()
	}
	if now := staying("it still does", 1); !slices.Equal(now, one) {
		t.Errorf("helpers %v, before %v", now, one)
	}
	if !bytes.Equal(imageOf(t, first, nil).pages, was.pages) {
		t.Error("the first capture is not what it was")
	}
	kill(t, one[0])
	capture().Close()
	two := staying("another one has come", 1)
	if slices.Equal(two, one) {
		t.Error("the dead one captured")
	}
	// One that is given the next capture and dies before it takes that up costs nothing.
	if err := unix.Kill(two[0], unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		c, err := d.Capture(t.Context(), p, inMemory)
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	enginetest.Eventually(t, "it is asked", func() bool { return asked(t, two[0]) })
	kill(t, two[0])
	if err := <-done; err != nil {
		t.Error(err)
	}
	staying("a third one has come", 1)
	if err := d.Kill(p.Generation); err != nil {
		t.Fatal(err)
	}
	staying("it goes with the engine", 0)
}

// asked tells whether there is something on a process' standard input.
func asked(t *testing.T, pid int) bool {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", pid), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// kill ends a process and waits until all of it is gone, its sockets too.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "it has ended", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n == 1 && err == nil
	})
}
