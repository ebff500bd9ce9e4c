// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// A preparation that hangs ends, and the pool is filled afterwards; so does the start
// of a sandbox, of which nothing is left.
func TestStartThatHangs(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize, c.StartTimeout = 1, 200*time.Millisecond })
	var hangs atomic.Bool
	hung := make(chan struct{}, 100)
	w.Engine.Hook(func(ctx context.Context, step, _ string) error {
		if step != sandboxtest.Start || !hangs.Load() {
			return ctx.Err()
		}
		hung <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	create(t, w, s, sandbox.CreateRequest{})
	sandboxtest.Eventually(t, "the pool is filled", func() bool {
		_, _, ready := s.PoolStats()
		return ready == 1
	})
	hangs.Store(true)
	create(t, w, s, sandbox.CreateRequest{}) // with what is prepared
	within(t, "a preparation that hangs", func() { <-hung })
	if _, err := s.Create(t.Context(), w.Org, sandbox.CreateRequest{}); err == nil || !strings.Contains(err.Error(), "did not start within 200ms") {
		t.Errorf("a start that hangs: %v", err)
	}
	hangs.Store(false)
	create(t, w, s, sandbox.CreateRequest{})
	sandboxtest.Eventually(t, "the pool is filled again", func() bool {
		_, _, ready := s.PoolStats()
		return ready == 1
	})
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

// Each shape that was wanted lately has its share of the pool, whatever its
// refiller was at when it was wanted; and none is had of one that was wanted long
// ago.
func TestPoolFollowsDemand(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	const size = 4
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize = size })
	shapes := []int{256, 384, 512}
	turn := func() {
		for _, mb := range shapes {
			create(t, w, s, sandbox.CreateRequest{MemoryMB: mb})
		}
	}
	prepared := func(when string, want func(of map[int]int) bool) {
		t.Helper()
		var of map[int]int
		sandboxtest.Eventually(t, when, func() bool {
			of = pooled(t, w)
			_, _, ready := s.PoolStats()
			if ready > size {
				t.Fatalf("%s: %d are prepared", when, ready)
			}
			return ready == size && want(of)
		})
	}
	each := func(of map[int]int) bool { return of[256] > 0 && of[384] > 0 && of[512] > 0 }

	create(t, w, s, sandbox.CreateRequest{MemoryMB: 256})
	prepared("one shape has all", func(of map[int]int) bool { return of[256] == size })
	turn()
	prepared("each has a share", each)
	hits, misses, _ := s.PoolStats()
	for range 2 {
		turn()
		prepared("each has a share again", each)
	}
	if h, m, _ := s.PoolStats(); h != hits+6 || m != misses {
		t.Errorf("of six creates %d hit, %d missed", h-hits, m-misses)
	}
	w.Clock.Advance(11 * time.Minute) // more than poolDemand
	create(t, w, s, sandbox.CreateRequest{MemoryMB: 640})
	prepared("the others are forgotten", func(of map[int]int) bool { return of[640] == size && len(of) == 1 })
}

// pooled counts the generations that are nobody's, by their memory.
func pooled(t *testing.T, w *sandboxtest.World) map[int]int {
	t.Helper()
	gens, err := w.Meta.Generations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	of := map[int]int{}
	for _, g := range gens {
		if g.SandboxID == "" {
			of[g.MemoryMB]++
		}
	}
	return of
}

// A shape of which nothing can be prepared does not keep others from it.
func TestPoolWithoutOneShape(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize = 2 })
	w.Engine.Hook(func(_ context.Context, step, generation string) error {
		if step != sandboxtest.Start {
			return nil
		}
		gen, err := w.Meta.Generation(context.Background(), generation)
		if err == nil && gen.SandboxID == "" && gen.MemoryMB == 384 {
			return errors.New("cannot start")
		}
		return err
	})
	create(t, w, s, sandbox.CreateRequest{MemoryMB: 256})
	create(t, w, s, sandbox.CreateRequest{MemoryMB: 384})
	sandboxtest.Eventually(t, "the pool is of the other shape", func() bool { return pooled(t, w)[256] == 2 })
	sandboxtest.Eventually(t, "the pool is filled", func() bool {
		_, _, ready := s.PoolStats()
		return ready == 2
	})
}
