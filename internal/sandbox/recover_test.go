// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// orphan is a sandbox whose server has ended, and whose channel nobody holds.
func orphan(t *testing.T, w *sandboxtest.World) meta.Sandbox {
	t.Helper()
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{})
	s.Close()
	if err := w.Keeper.Drop(t.Context(), sb.GenerationID); err != nil {
		t.Fatal(err)
	}
	return sb
}

// recovering is a service that recovers by f, and soon tries again.
func recovering(t *testing.T, w *sandboxtest.World, f func(ctx context.Context) error) *sandbox.Service {
	t.Helper()
	return serve(t, w, func(c *sandbox.Config) {
		c.RetryPause, c.AdoptTimeout = time.Millisecond, 500*time.Millisecond
		c.Recover = func(ctx context.Context, _ *sandbox.Operation, _ meta.Sandbox, _ meta.Generation) error {
			return f(ctx)
		}
	})
}

// A recovery that is refused, for want of memory say, is tried again for as long as
// that takes: the engine runs on, and who uses the sandbox is told why it waits.
func TestRefusedRecoveryWaits(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	sb := orphan(t, w)
	var asked atomic.Int32
	var room atomic.Bool
	s := recovering(t, w, func(context.Context) error {
		asked.Add(1)
		if room.Load() {
			return nil
		}
		return fault.New(fault.Unavailable, "no memory today")
	})
	sandboxtest.Eventually(t, "it was tried more often than a failure is", func() bool { return asked.Load() > 4 })
	if _, err := s.Acquire(t.Context(), w.Org, sb.ID); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "is being recovered") || !strings.Contains(err.Error(), "no memory today") {
		t.Errorf("a use meanwhile: %v", err)
	}
	if err := s.Operate(t.Context(), sb.ID, "checkpoint", func(_ context.Context, op *sandbox.Operation) error {
		_, err := op.Run()
		return err
	}); err == nil || !strings.Contains(err.Error(), "no memory today") {
		t.Errorf("an operation meanwhile: %v", err)
	}
	if row := state(t, w, sb.ID); row.State != meta.SandboxRunning {
		t.Errorf("it is %s: %s", row.State, row.Reason)
	}
	room.Store(true)
	sandboxtest.Eventually(t, "it is recovered", func() bool {
		_, err := s.Acquire(t.Context(), w.Org, sb.ID)
		return err != nil && !strings.Contains(err.Error(), "is being recovered")
	})
}

// A kill ends a recovery that waits.
func TestKillDuringRecovery(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	sb := orphan(t, w)
	at := make(chan struct{}, 100)
	s := recovering(t, w, func(ctx context.Context) error {
		at <- struct{}{}
		<-ctx.Done()
		return fault.Wrap(fault.Unavailable, ctx.Err(), "given up")
	})
	within(t, "an attempt", func() { <-at })
	if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil {
		t.Error(err)
	}
	w.Empty(t)
}

// A sandbox whose agent is only silent does not end because a copy of it is silent
// too, and goes on as it is when the agent answers.
func TestSilentAgentIsAdoptedLater(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{})
	s.Close()
	gen, err := w.Meta.Generation(t.Context(), sb.GenerationID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := engine.DecodeProcess(gen.Process)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Engine.Pause(t.Context(), p); err != nil { // with its agent
		t.Fatal(err)
	}
	var asked atomic.Int32
	s = recovering(t, w, func(context.Context) error {
		asked.Add(1)
		return errors.New("the copy is silent too")
	})
	sandboxtest.Eventually(t, "it was tried more often than a failure is", func() bool { return asked.Load() > 3 })
	if err := w.Engine.Resume(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, "it is adopted", func() bool {
		l, err := s.Acquire(t.Context(), w.Org, sb.ID)
		if err == nil {
			l.Release()
		}
		return err == nil
	})
	if row := state(t, w, sb.ID); row.State != meta.SandboxRunning || row.GenerationID != sb.GenerationID {
		t.Errorf("it is %+v", row)
	}
}

// No more are recovered at a time than there are CPUs: each is a capture and a
// restore.
func TestRecoveriesTakeTurns(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	n := runtime.NumCPU() + 2
	for range n {
		create(t, w, s, sandbox.CreateRequest{})
	}
	s.Close()
	if err := forgetAll(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	var now, most, done atomic.Int32
	letGo := make(chan struct{})
	recovering(t, w, func(context.Context) error {
		if k := now.Add(1); k > most.Load() {
			most.Store(k)
		}
		<-letGo
		now.Add(-1)
		done.Add(1)
		return nil
	})
	sandboxtest.Eventually(t, "as many are recovered as may", func() bool { return int(now.Load()) == runtime.NumCPU() })
	close(letGo)
	sandboxtest.Eventually(t, "all are recovered", func() bool { return int(done.Load()) == n })
	if int(most.Load()) > runtime.NumCPU() {
		t.Errorf("%d at a time", most.Load())
	}
}
