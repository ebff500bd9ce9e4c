// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// serve starts a service of the world, which ends with the test.
func serve(t *testing.T, w *sandboxtest.World, change ...func(*sandbox.Config)) *sandbox.Service {
	t.Helper()
	cfg := w.Config(t)
	for _, c := range change {
		c(&cfg)
	}
	s := sandbox.New(cfg)
	t.Cleanup(s.Close)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, w *sandboxtest.World, s *sandbox.Service, req sandbox.CreateRequest) meta.Sandbox {
	t.Helper()
	sb, err := s.Create(t.Context(), w.Org, req)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return sb
}

func state(t *testing.T, w *sandboxtest.World, id string) meta.Sandbox {
	t.Helper()
	sb, err := w.Meta.SandboxAnyOrg(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// within runs f and demands that it ends soon.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(sandboxtest.Patience):
		t.Fatalf("timed out: %s", what)
	}
}

func TestLifeOfASandbox(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{Name: "one", TimeoutSec: 300, Envs: map[string]string{"A": "b"}})
	w.Exactly(t, sb.GenerationID)
	if got, err := s.Get(t.Context(), w.Org, sb.ID); err != nil || got.State != meta.SandboxRunning || got.Name != "one" || got.Envs["A"] != "b" {
		t.Errorf("Get: %+v, %v", got, err)
	}
	if _, err := s.Get(t.Context(), "org-other", sb.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("Get of a foreign one: %v", err)
	}
	l, err := s.Acquire(t.Context(), w.Org, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Agent.Sessions(t.Context()); err != nil || l.Timeline == "" || l.Sandbox.ID != sb.ID {
		t.Errorf("a lease that does not serve: %v, %+v", err, l)
	}
	l.Release()
	l.Release()
	if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Changed:
	default:
		t.Error("the lease's user was not told that the sandbox ended")
	}
	w.Empty(t)
	if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil {
		t.Errorf("Kill again: %v", err)
	}
	if _, err := s.Acquire(t.Context(), w.Org, sb.ID); !fault.Is(err, fault.Gone) {
		t.Errorf("Acquire of a stopped one: %v", err)
	}
	if err := s.SetTimeout(t.Context(), w.Org, sb.ID, 5); !fault.Is(err, fault.Gone) {
		t.Errorf("SetTimeout of a stopped one: %v", err)
	}
	for all, want := range map[bool]int{false: 0, true: 1} {
		if rows, err := s.List(t.Context(), w.Org, all); err != nil || len(rows) != want {
			t.Errorf("List(%v): %d, %v", all, len(rows), err)
		}
	}
	if err := s.Kill(t.Context(), w.Org, "sb-none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("Kill of an unknown one: %v", err)
	}
}

// Whatever step of a create fails, nothing of it is left.
func TestFailedCreateLeavesNothing(t *testing.T) {
	t.Parallel()
	errStep := errors.New("the step broke")
	for name, harm := range map[string]func(*sandboxtest.World, *sandbox.Config){
		"engine": func(w *sandboxtest.World, _ *sandbox.Config) {
			w.Engine.Hook(func(_ context.Context, step, _ string) error {
				if step == sandboxtest.Start {
					return errStep
				}
				return nil
			})
		},
		"keeper": func(w *sandboxtest.World, c *sandbox.Config) { c.Keeper = &brokenKeeper{w.Keeper, errStep} },
		"images": func(w *sandboxtest.World, c *sandbox.Config) { c.Images = brokenImages{w, errStep} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sandboxtest.New(t)
			s := serve(t, w, func(c *sandbox.Config) { harm(w, c) })
			if _, err := s.Create(t.Context(), w.Org, sandbox.CreateRequest{}); !errors.Is(err, errStep) {
				t.Errorf("create: %v", err)
			}
			w.Empty(t)
			if rows, err := w.Meta.SandboxesAnyOrg(t.Context()); err != nil || len(rows) > 0 {
				t.Errorf("rows are left: %v, %v", rows, err)
			}
		})
	}
}

type brokenKeeper struct {
	*sandboxtest.Keeper
	err error
}

func (k *brokenKeeper) Put(context.Context, string, ...syscall.Conn) error { return k.err }

type brokenImages struct {
	*sandboxtest.World
	err error
}

func (i brokenImages) Resolve(context.Context, string, string, func(string)) (sandbox.Image, error) {
	return sandbox.Image{}, i.err
}

// A caller who goes away during a create leaves nothing.
func TestCancelledCreate(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	w.Engine.Hook(func(ctx context.Context, step, _ string) error {
		if step == sandboxtest.Start {
			cancel()
			<-ctx.Done()
		}
		return ctx.Err()
	})
	within(t, "a cancelled create", func() {
		if _, err := s.Create(ctx, w.Org, sandbox.CreateRequest{}); !errors.Is(err, context.Canceled) {
			t.Errorf("create: %v", err)
		}
	})
	w.Empty(t)
}

// What could not be removed is marked, and removed later.
func TestDestroyFailsForAWhile(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{})
	errStuck := errors.New("stuck")
	w.Engine.Hook(func(_ context.Context, step, _ string) error {
		if step == sandboxtest.Destroy {
			return errStuck
		}
		return nil
	})
	if err := s.Kill(t.Context(), w.Org, sb.ID); !errors.Is(err, errStuck) {
		t.Errorf("Kill: %v", err)
	}
	if sb := state(t, w, sb.ID); sb.State != meta.SandboxStopped {
		t.Errorf("after it the sandbox is %s", sb.State)
	}
	w.Exactly(t, sb.GenerationID)
	w.Engine.Hook(nil)
	s.Close()
	serve(t, w) // a new start reconciles at once
	w.Empty(t)
}

func TestEngineDeath(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{})
	l, err := s.Acquire(t.Context(), w.Org, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if err := w.Engine.Kill(sb.GenerationID); err != nil {
		t.Fatal(err)
	}
	within(t, "news of a death", func() { <-l.Changed })
	sandboxtest.Eventually(t, "the sandbox is in error", func() bool { return state(t, w, sb.ID).State == meta.SandboxError })
	if row := state(t, w, sb.ID); !strings.Contains(row.Reason, "engine process ended") || row.StoppedAt == nil {
		t.Errorf("reason %q, stopped at %v", row.Reason, row.StoppedAt)
	}
	sandboxtest.Eventually(t, "its generation is removed", func() bool {
		gens, err := w.Meta.Generations(t.Context())
		return err == nil && len(gens) == 0
	})
	w.Empty(t)
	if _, err := s.Acquire(t.Context(), w.Org, sb.ID); !fault.Is(err, fault.Gone) || !strings.Contains(err.Error(), "engine process ended") {
		t.Errorf("Acquire: %v", err)
	}
	if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil || state(t, w, sb.ID).State != meta.SandboxStopped {
		t.Errorf("Kill of one in error: %v", err)
	}
}

// unwatched is an engine whose processes cannot be watched.
type unwatched struct{ *sandboxtest.Engine }

func (unwatched) Exited(context.Context, engine.Process) (<-chan struct{}, error) {
	return nil, errors.New("cannot be watched")
}

// An engine that ended without a word of it is found out, unless an operation is about
// to find it.
func TestUnheardEngineDeath(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.Engine = unwatched{w.Engine} })
	kept, dead := create(t, w, s, sandbox.CreateRequest{}), create(t, w, s, sandbox.CreateRequest{})
	if err := w.Engine.Kill(dead.GenerationID); err != nil {
		t.Fatal(err)
	}
	gone(t, w, dead.GenerationID)
	err := s.Operate(t.Context(), dead.ID, "restore", func(context.Context, *sandbox.Operation) error { return s.Compare() })
	if row := state(t, w, dead.ID); err != nil || row.State != meta.SandboxRunning {
		t.Errorf("during an operation: %s, %v", row.State, err)
	}
	if err := s.Compare(); err != nil {
		t.Error(err)
	}
	if row := state(t, w, dead.ID); row.State != meta.SandboxError || !strings.Contains(row.Reason, "ended unexpectedly") {
		t.Errorf("the dead one is %s: %s", row.State, row.Reason)
	}
	w.Exactly(t, kept.GenerationID)
}

// Operations on one sandbox take turns; on others they do not wait.
func TestOneOperationAtATime(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.OperationWait = 50 * time.Millisecond })
	a, b := create(t, w, s, sandbox.CreateRequest{}), create(t, w, s, sandbox.CreateRequest{})
	begun, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Operate(t.Context(), a.ID, "first", func(context.Context, *sandbox.Operation) error {
			close(begun)
			<-release
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	<-begun
	err := s.Operate(t.Context(), a.ID, "second", func(context.Context, *sandbox.Operation) error {
		t.Error("two operations at once")
		return nil
	})
	if f := fault.As(err); err == nil || f.Kind != fault.Conflict || !strings.Contains(f.Message, `busy with "first"`) {
		t.Errorf("the second: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Operate(ctx, a.ID, "third", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who left: %v", err)
	}
	if err := s.Operate(t.Context(), b.ID, "other", func(context.Context, *sandbox.Operation) error { return nil }); err != nil {
		t.Errorf("on another sandbox: %v", err)
	}
	// Reads and uses of the agent go on meanwhile.
	l, err := s.Acquire(t.Context(), w.Org, a.ID)
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	close(release)
	wg.Wait()
	var running, total atomic.Int32
	for range 20 {
		wg.Go(func() {
			err := s.Operate(t.Context(), b.ID, "many", func(context.Context, *sandbox.Operation) error {
				if running.Add(1) > 1 {
					t.Error("two operations at once")
				}
				total.Add(1)
				running.Add(-1)
				return nil
			})
			if err != nil && !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if total.Load() == 0 {
		t.Error("nobody had a turn")
	}
}

// A kill ends the operation that runs and those that wait, and comes next.
func TestKillComesFirst(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{})
	begun := make(chan struct{})
	errs := make(chan error, 2)
	undone := false
	go func() {
		errs <- s.Operate(t.Context(), sb.ID, "long", func(ctx context.Context, _ *sandbox.Operation) error {
			close(begun)
			<-ctx.Done()
			undone = true // only then may the kill begin
			return ctx.Err()
		})
	}()
	<-begun
	go func() {
		errs <- s.Operate(t.Context(), sb.ID, "waiting", func(ctx context.Context, op *sandbox.Operation) error {
			if row, err := w.Meta.SandboxAnyOrg(ctx, sb.ID); err != nil || row.State != meta.SandboxStopped {
				t.Errorf("an operation came before a waiting kill: %s, %v", row.State, err)
			}
			if _, err := op.Run(); err == nil { // it came after the kill
				t.Error("a killed sandbox has a run")
			}
			return nil
		})
	}()
	within(t, "kill", func() {
		if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil {
			t.Error(err)
		}
	})
	if !undone {
		t.Error("the kill did not wait for the operation to have undone itself")
	}
	if err := <-errs; !fault.Is(err, fault.Gone) {
		t.Errorf("an operation ended with: %v", err)
	}
	w.Empty(t)
	if state(t, w, sb.ID).State != meta.SandboxStopped {
		t.Error("not stopped")
	}
	select {
	case err := <-errs: // it may have come after the kill: then the sandbox is gone
		if err != nil && !fault.Is(err, fault.Gone) {
			t.Errorf("the waiting operation ended with: %v", err)
		}
	case <-time.After(sandboxtest.Patience):
		t.Error("an operation waits for ever")
	}
}

// Parallel kills are one.
func TestParallelKills(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	sb := create(t, w, s, sandbox.CreateRequest{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.Empty(t)
}

// Acquire under a storm of creates and kills neither hangs nor serves what is gone.
func TestAcquireNeverSpins(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				rows, err := s.List(ctx, w.Org, true)
				if err != nil {
					continue // the end of ctx
				}
				for _, sb := range rows {
					l, err := s.Acquire(ctx, w.Org, sb.ID)
					if err == nil {
						l.Release()
					} else if ctx.Err() == nil && !fault.Is(err, fault.Gone) {
						t.Errorf("Acquire of one that is %s: %v", sb.State, err)
					}
				}
			}
		})
	}
	for range 8 {
		sb := create(t, w, s, sandbox.CreateRequest{})
		if err := s.Kill(t.Context(), w.Org, sb.ID); err != nil {
			t.Error(err)
		}
	}
	cancel()
	within(t, "the callers", wg.Wait)
}
