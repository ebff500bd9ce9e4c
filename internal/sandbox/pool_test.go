// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// Engine processes are prepared after demand, are used by the next creates, and
// go with the server; sandboxes made of them stay.
func TestPool(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize = 2 })
	filled := func() {
		t.Helper()
		sandboxtest.Eventually(t, "the pool is filled", func() bool {
			_, _, ready := s.PoolStats()
			return ready == 2
		})
	}
	first := create(t, w, s, sandbox.CreateRequest{})
	filled()
	second := create(t, w, s, sandbox.CreateRequest{})
	if hits, misses, _ := s.PoolStats(); hits != 1 || misses != 1 {
		t.Errorf("%d hits, %d misses", hits, misses)
	}
	if l, err := s.Acquire(t.Context(), w.Org, second.ID); err != nil {
		t.Error(err)
	} else {
		l.Release()
	}
	filled()
	// A member that died is passed over.
	gens, err := w.Meta.Generations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gens {
		if g.SandboxID == "" {
			if err := w.Engine.Kill(g.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	third := create(t, w, s, sandbox.CreateRequest{})
	// Another shape is another key.
	fourth := create(t, w, s, sandbox.CreateRequest{MemoryMB: 256})
	s.Close()
	w.Exactly(t, first.GenerationID, second.GenerationID, third.GenerationID, fourth.GenerationID)
}

// A server that dies leaves members behind; the next one removes them.
func TestPoolAfterACrash(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	gen := meta.Generation{State: meta.GenerationStarting}
	if err := w.Meta.InsertGeneration(t.Context(), &gen); err != nil {
		t.Fatal(err)
	}
	leave(t, w, gen.ID)
	serve(t, w, func(c *sandbox.Config) { c.PoolSize = 2 })
	w.Empty(t)
}

// A pool that cannot be filled costs nothing but itself.
func TestPoolCannotBeFilled(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize = 2 })
	tried := make(chan struct{}, 100)
	var starts atomic.Int32
	w.Engine.Hook(func(_ context.Context, step, _ string) error {
		if step == sandboxtest.Start && starts.Add(1) == 2 { // the first is the sandbox's
			tried <- struct{}{}
			return errors.New("cannot start")
		}
		return nil
	})
	a := create(t, w, s, sandbox.CreateRequest{})
	within(t, "an attempt", func() { <-tried })
	b := create(t, w, s, sandbox.CreateRequest{})
	s.Close()
	w.Exactly(t, a.GenerationID, b.GenerationID)
}

// A create takes an engine of the pool as it is, with its agent; one that is not
// there and cannot be started fails its create, and nothing is left of it.
func TestPoolMemberNeedsNoStart(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize = 1 })
	a := create(t, w, s, sandbox.CreateRequest{})
	sandboxtest.Eventually(t, "the pool is filled", func() bool {
		_, _, ready := s.PoolStats()
		return ready == 1
	})
	errStart := errors.New("cannot start")
	w.Engine.Hook(func(_ context.Context, step, _ string) error {
		if step == sandboxtest.Start {
			return errStart
		}
		return nil
	})
	b := create(t, w, s, sandbox.CreateRequest{})
	if _, err := s.Create(t.Context(), w.Org, sandbox.CreateRequest{}); !errors.Is(err, errStart) {
		t.Errorf("create: %v", err)
	}
	s.Close()
	w.Exactly(t, a.GenerationID, b.GenerationID)
}
