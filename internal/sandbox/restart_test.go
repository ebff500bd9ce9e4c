// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// A new server adopts what runs: the same processes, sessions and timeline.
func TestAdoption(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{TimeoutSec: 100})
	l, err := s.Acquire(t.Context(), w.Org, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	line := l.Timeline
	sess, err := l.Agent.Start(t.Context(), agentclient.StartRequest{Argv: []string{"/bin/sleep", "1000"}, User: "0"})
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	s.Close()
	select {
	case <-l.Changed:
	default:
		t.Error("the lease's user was not told that the server ends")
	}
	w.Exactly(t, sb.GenerationID)

	s = serve(t, w)
	w.Exactly(t, sb.GenerationID)
	l, err = s.Acquire(t.Context(), w.Org, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if got, err := l.Agent.Session(t.Context(), sess.ID); err != nil || got.PID != sess.PID || l.Timeline != line {
		t.Errorf("after the restart: %+v, %v, timeline %s, was %s", got, err, l.Timeline, line)
	}
	if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil {
		t.Fatal(err)
	}
	w.Empty(t)
}

// gone waits until the engine of a generation that was killed has ended.
func gone(t *testing.T, w *sandboxtest.World, generation string) {
	t.Helper()
	gen, err := w.Meta.Generation(t.Context(), generation)
	if err != nil {
		t.Fatal(err)
	}
	p, err := engine.DecodeProcess(gen.Process)
	if err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, "the engine has ended", func() bool { return !w.Engine.Alive(p) })
}

// Whatever an earlier server left half made is gone after the start of the
// next one; what it had finished is there.
func TestRecovery(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	kept := create(t, w, s, sandbox.CreateRequest{Name: "kept"})
	dead := create(t, w, s, sandbox.CreateRequest{Name: "dead"})
	s.Close()

	if err := w.Engine.Kill(dead.GenerationID); err != nil { // died while no server ran
		t.Fatal(err)
	}
	gone(t, w, dead.GenerationID)
	// A create that had got as far as its row, and one as far as its process.
	rowOnly := meta.Sandbox{OrgID: w.Org, State: meta.SandboxPending}
	half := meta.Sandbox{OrgID: w.Org, State: meta.SandboxPending}
	for _, sb := range []*meta.Sandbox{&rowOnly, &half} {
		if err := w.Meta.InsertSandbox(t.Context(), sb); err != nil {
			t.Fatal(err)
		}
	}
	gen := meta.Generation{SandboxID: half.ID, State: meta.GenerationStarting}
	if err := w.Meta.InsertGeneration(t.Context(), &gen); err != nil {
		t.Fatal(err)
	}
	leave(t, w, gen.ID)
	leave(t, w, "gn-00000bad") // of no row at all

	s = serve(t, w)
	w.Exactly(t, kept.GenerationID)
	if row := state(t, w, dead.ID); row.State != meta.SandboxError || !strings.Contains(row.Reason, "while the server was down") {
		t.Errorf("the dead one is %s: %s", row.State, row.Reason)
	}
	for _, id := range []string{rowOnly.ID, half.ID} {
		if _, err := w.Meta.SandboxAnyOrg(t.Context(), id); !fault.Is(err, fault.NotFound) {
			t.Errorf("a pending row is left: %v", err)
		}
	}
	l, err := s.Acquire(t.Context(), w.Org, kept.ID)
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
}

// leave makes what an engine leaves of a generation, and a keeper entry.
func leave(t *testing.T, w *sandboxtest.World, id string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(w.Engine.Root(id), "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	host, guest, err := agentclient.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	defer guest.Close()
	if err := w.Keeper.Put(t.Context(), id, host); err != nil {
		t.Fatal(err)
	}
}

// One sandbox that cannot be adopted keeps neither the others nor the server.
func TestAdoptionWithoutItsChannel(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	lost, kept := create(t, w, s, sandbox.CreateRequest{}), create(t, w, s, sandbox.CreateRequest{})
	s.Close()
	if err := w.Keeper.Drop(t.Context(), lost.GenerationID); err != nil {
		t.Fatal(err)
	}
	errRecover := errors.New("cannot be recovered")
	var asked atomic.Int32
	s = serve(t, w, func(c *sandbox.Config) {
		c.Recover = func(_ context.Context, _ *sandbox.Operation, sb meta.Sandbox, gen meta.Generation) error {
			asked.Add(1)
			if sb.ID != lost.ID || gen.ID != lost.GenerationID {
				t.Errorf("recovery of %s, %s", sb.ID, gen.ID)
			}
			return errRecover
		}
	})
	sandboxtest.Eventually(t, "the lost one has ended, and is gone", func() bool {
		_, err := w.Meta.Generation(t.Context(), lost.GenerationID) // its row goes last
		return state(t, w, lost.ID).State == meta.SandboxError && fault.Is(err, fault.NotFound)
	})
	if row := state(t, w, lost.ID); asked.Load() != 3 || row.State != meta.SandboxError || !strings.Contains(row.Reason, errRecover.Error()) {
		t.Errorf("asked %d times, then %s: %s", asked.Load(), row.State, row.Reason)
	}
	w.Exactly(t, kept.GenerationID)
	if l, err := s.Acquire(t.Context(), w.Org, kept.ID); err != nil {
		t.Error(err)
	} else {
		l.Release()
	}
}

// A recovery that fails once, because the keeper is being replaced say, ends nothing.
func TestRecoveryIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	sb := orphan(t, w)
	var asked atomic.Int32
	serve(t, w, func(c *sandbox.Config) {
		c.Recover = func(context.Context, *sandbox.Operation, meta.Sandbox, meta.Generation) error {
			if asked.Add(1) == 1 {
				return errors.New("the keeper is gone")
			}
			return nil
		}
	})
	sandboxtest.Eventually(t, "it is tried again", func() bool { return asked.Load() == 2 })
	if row := state(t, w, sb.ID); row.State != meta.SandboxRunning {
		t.Errorf("it is %s: %s", row.State, row.Reason)
	}
}

// expiring is a service whose expiries are counted.
func expiring(t *testing.T, w *sandboxtest.World, err func() error) (*sandbox.Service, *atomic.Int32) {
	t.Helper()
	var n atomic.Int32
	s := serve(t, w, func(c *sandbox.Config) {
		c.Expire = func(context.Context, *sandbox.Operation, meta.Sandbox) error {
			n.Add(1)
			return err()
		}
	})
	return s, &n
}

// An idle sandbox is saved, then stopped, when its timeout has passed since it
// was last used.
func TestExpiry(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s, saved := expiring(t, w, func() error { return nil })
	never := create(t, w, s, sandbox.CreateRequest{})
	later := create(t, w, s, sandbox.CreateRequest{TimeoutSec: 1000})
	used := create(t, w, s, sandbox.CreateRequest{TimeoutSec: 100})
	idle := create(t, w, s, sandbox.CreateRequest{TimeoutSec: 100})
	l, err := s.Acquire(t.Context(), w.Org, used.ID)
	if err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(101 * time.Second)
	sandboxtest.Eventually(t, "the idle one is stopped", func() bool { return state(t, w, idle.ID).State == meta.SandboxStopped })
	if row := state(t, w, idle.ID); row.Reason != "expired" || saved.Load() != 1 {
		t.Errorf("reason %q, %d saved", row.Reason, saved.Load())
	}
	for _, id := range []string{never.ID, later.ID, used.ID} {
		if row := state(t, w, id); row.State != meta.SandboxRunning {
			t.Errorf("%s is %s", id, row.State)
		}
	}
	// The last use counts, and what has been told of it outlives the server.
	l.Release()
	w.Clock.Advance(99 * time.Second)
	sandboxtest.Eventually(t, "the use is stored", func() bool {
		return w.Clock.Now().Sub(state(t, w, used.ID).LastActiveAt) < 150*time.Second
	})
	if row := state(t, w, used.ID); row.State != meta.SandboxRunning {
		t.Errorf("used 99 s ago, %s", row.State)
	}
	w.Clock.Advance(2 * time.Second)
	sandboxtest.Eventually(t, "the used one is stopped", func() bool { return state(t, w, used.ID).State == meta.SandboxStopped })
	// A new timeout counts from when it is set.
	if err := s.SetTimeout(t.Context(), w.Org, never.ID, 10); err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(11 * time.Second)
	sandboxtest.Eventually(t, "the changed one is stopped", func() bool { return state(t, w, never.ID).State == meta.SandboxStopped })
	if err := s.SetTimeout(t.Context(), w.Org, later.ID, 0); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, "only one generation is left", func() bool {
		gens, err := w.Meta.Generations(t.Context())
		return err == nil && len(gens) == 1
	})
	w.Exactly(t, later.GenerationID)
}

// A sandbox that cannot be saved runs on for another timeout.
func TestFailedExpiry(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	var fail atomic.Bool
	fail.Store(true)
	s, saved := expiring(t, w, func() error {
		if fail.Load() {
			return errors.New("no space")
		}
		return nil
	})
	sb := create(t, w, s, sandbox.CreateRequest{TimeoutSec: 60})
	w.Clock.Advance(61 * time.Second)
	sandboxtest.Eventually(t, "an attempt", func() bool { return saved.Load() == 1 })
	l, err := s.Acquire(t.Context(), w.Org, sb.ID)
	if err != nil {
		t.Fatalf("after the failure: %v", err)
	}
	l.Release()
	fail.Store(false)
	w.Clock.Advance(61 * time.Second)
	sandboxtest.Eventually(t, "it is stopped", func() bool { return state(t, w, sb.ID).State == meta.SandboxStopped })
	if saved.Load() != 2 {
		t.Errorf("%d attempts", saved.Load())
	}
}

// A use that comes while the sandbox is saved waits, and finds it stopped: what
// it did would be lost.
func TestUseDuringExpiry(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	begun, release := make(chan struct{}), make(chan struct{})
	s, _ := expiring(t, w, func() error {
		close(begun)
		<-release
		return nil
	})
	sb := create(t, w, s, sandbox.CreateRequest{TimeoutSec: 60})
	w.Clock.Advance(61 * time.Second)
	within(t, "the expiry", func() { <-begun })
	got := make(chan error, 1)
	go func() {
		l, err := s.Acquire(t.Context(), w.Org, sb.ID)
		if err == nil {
			l.Release()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Errorf("Acquire did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	within(t, "the use", func() {
		if err := <-got; !fault.Is(err, fault.Gone) {
			t.Errorf("Acquire: %v", err)
		}
	})
}
