// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/engine/gvisor"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
)

// holding is a guest that a driver of its own holds frozen.
type holding struct {
	*enginetest.Guest
	engine.Held
	d       *gvisor.Driver
	dir     string // of the driver
	counter string
}

func hold(t *testing.T) *holding {
	t.Helper()
	h := &holding{dir: t.TempDir()}
	h.d = hostIn(t, h.dir)
	t.Cleanup(h.d.Close)
	spec := enginetest.Spec(t, enginetest.Shape())
	end, guest := enginetest.Pair(t)
	p, err := h.d.Start(t.Context(), spec, guest)
	if err != nil {
		t.Fatal(err)
	}
	h.Guest = host.Adopt(t, p, spec, end)
	h.counter = h.Begin(t, steady)
	c, held, err := h.d.CaptureHeld(t.Context(), p, inMemory, 2*enginetest.Patience)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	h.Held = held
	stopped(t, h.Guest)
	return h
}

// helper is the one of a kind.
func (h *holding) helper(t *testing.T, kind string) int {
	t.Helper()
	for pid, k := range helpersOf(h.dir) {
		if k == kind {
			return pid
		}
	}
	t.Fatalf("no helper is there to %s", kind)
	return 0
}

// A generation that is kept stays frozen when nobody holds it any more, until it is
// resumed or destroyed.
func TestKeep(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]func(*testing.T, *holding){
		"resume": func(t *testing.T, h *holding) {
			if err := h.d.Resume(t.Context(), h.Process); err != nil {
				t.Fatal(err)
			}
			counts(t, h.Guest, h.counter)
		},
		"destroy": func(t *testing.T, h *holding) {
			if err := h.d.Destroy(t.Context(), h.Process); err != nil {
				t.Fatal(err)
			}
			gone(t, h.Generation)
		},
		"next server": func(t *testing.T, h *holding) {
			hostIn(t, h.dir).Close()
			stopped(t, h.Guest)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hold(t)
			if err := h.Keep(t.Context()); err != nil {
				t.Fatal(err)
			}
			enginetest.Eventually(t, "nobody holds it", func() bool {
				hs := helpersOf(h.dir)
				return count(hs, "capture") == 0 && count(hs, "watch") == 0
			})
			stopped(t, h.Guest)
			after(t, h)
		})
	}
}

// The next server finds a hold without its own, and the engine goes on, once, whoever
// of those who would let it go on is there and in whatever order they end.
func TestNextServerEndsAHold(t *testing.T) {
	t.Parallel()
	const bound = 45 * time.Second // two patiences, and a busy machine
	kill := func(t *testing.T, h *holding, kind string, sig unix.Signal) {
		t.Helper()
		if err := unix.Kill(h.helper(t, kind), sig); err != nil {
			t.Fatal(err)
		}
	}
	for name, before := range map[string]func(*testing.T, *holding){
		"both are left": func(_ *testing.T, h *holding) {
			gvisor.LeaveHolder(h.Held)
			gvisor.LeaveWatchdog(h.Held)
		},
		"the holder hangs": func(_ *testing.T, h *holding) { gvisor.LeaveWatchdog(h.Held) },
		"both hang":        func(*testing.T, *holding) {},
		"the holder hangs and the watchdog is dead":  func(t *testing.T, h *holding) { kill(t, h, "watch", unix.SIGKILL) },
		"the holder is dead and the watchdog hangs":  func(t *testing.T, h *holding) { kill(t, h, "capture", unix.SIGKILL) },
		"the watchdog was asked to end":              func(t *testing.T, h *holding) { gvisor.LeaveWatchdog(h.Held); kill(t, h, "watch", unix.SIGTERM) },
		"the holder is dead and the watchdog is not": func(t *testing.T, h *holding) { kill(t, h, "capture", unix.SIGKILL); gvisor.LeaveWatchdog(h.Held) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hold(t)
			before(t, h)
			began := time.Now()
			next := hostIn(t, h.dir)
			defer next.Close()
			if took := time.Since(began); took > bound {
				t.Errorf("it took %v", took)
			}
			counts(t, h.Guest, h.counter)
			for pid, kind := range helpersOf(h.dir) {
				if kind == "capture" || kind == "watch" {
					t.Errorf("%d is there to %s", pid, kind)
				}
			}
			// Its server, if it is there after all, cannot let it go on again, which would end it.
			if err := h.Thaw(t.Context()); err == nil {
				t.Error("it was still held")
			}
			counts(t, h.Guest, h.counter)
			c, err := next.Capture(t.Context(), h.Process, inMemory)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			counts(t, h.Guest, h.counter)
		})
	}
}

// The helpers that wait for work die with the one that holds an engine: another one
// lets it go on, once.
func TestHolderDiesWithAllOthers(t *testing.T) {
	t.Parallel()
	h := hold(t)
	for pid, kind := range helpersOf(h.dir) {
		if kind == "capture" || kind == "standby" {
			_ = unix.Kill(pid, unix.SIGKILL) // gone is as good
		}
	}
	if err := h.Thaw(t.Context()); err != nil {
		t.Logf("the holder is dead: %v", err)
	}
	counts(t, h.Guest, h.counter)
	c, err := h.d.Capture(t.Context(), h.Process, inMemory)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	counts(t, h.Guest, h.counter)
}

// What dies first when the machine runs out of memory is a guest's process, then its
// engine; who serves the pages of those that load dies last.
func TestOOMScores(t *testing.T) {
	t.Parallel()
	const guest, own = 1000, 100
	score := func(pid int) int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil {
			return guest // it has ended meanwhile
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	scores := func(what string, g *enginetest.Guest) {
		t.Helper()
		if n := score(g.PID); n != own {
			t.Errorf("%s: the engine's is %d, want %d", what, n, own)
		}
		stubs := proc.Descendants(g.PID, 1000)
		if len(stubs) == 0 {
			t.Errorf("%s: there are no processes of its guest", what)
		}
		for _, pid := range stubs {
			if n := score(pid); n != guest {
				t.Errorf("%s: that of a guest's process is %d, want %d", what, n, guest)
			}
		}
	}
	p := newPair(t, 64, 10<<20)
	p.source.Begin(t, "sleep 1000")
	scores("started", p.source)
	r, adopt, err := p.begin(t, p.src)
	if err != nil {
		t.Fatal(err)
	}
	serving := append(p.helpers(p.Build(), "pager"), r.Pager().PID)
	if len(serving) != 2 {
		t.Fatalf("pagers and helpers %v", serving)
	}
	pager := -500
	c := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	if proc.SetOOMScore(c.Process.Pid, pager) != nil { // a container may forbid to lower it
		pager = score(c.Process.Pid)
	}
	for _, pid := range serving {
		if n := score(pid); n != pager {
			t.Errorf("that of a pager is %d, want %d", n, pager)
		}
	}
	scores("restored", adopt())
	prepared, err := p.Prepare(t.Context(), enginetest.Spec(t, enginetest.Shape()), stdin(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Destroy(context.WithoutCancel(t.Context()), prepared); err != nil {
			t.Error(err)
		}
	}()
	if n := score(prepared.PID); n != own {
		t.Errorf("prepared: the engine's is %d, want %d", n, own)
	}
}

// stdin is the guest's end of a channel that nobody uses.
func stdin(t *testing.T) *os.File {
	t.Helper()
	_, guest := enginetest.Pair(t)
	return guest
}
