// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"testing"

	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// forgetAll is the end of a keeper: the next one holds nothing.
func forgetAll(ctx context.Context, w *sandboxtest.World) error {
	held, err := w.Keeper.List(ctx)
	for _, name := range held {
		err = errors.Join(err, w.Keeper.Drop(ctx, name))
	}
	return err
}

// A keeper that takes another's place is given all channels: those of prepared
// engines too.
func TestNewKeeperIsGivenAll(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize = 2 })
	create(t, w, s, sandbox.CreateRequest{})
	sandboxtest.Eventually(t, "the pool is filled", func() bool {
		_, _, ready := s.PoolStats()
		return ready == 2
	})
	if err := errors.Join(forgetAll(t.Context(), w), s.Rekeep(t.Context())); err != nil {
		t.Fatal(err)
	}
	gens, err := w.Meta.Generations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, g := range gens {
		ids = append(ids, g.ID)
	}
	if len(ids) != 3 {
		t.Errorf("generations %v", ids)
	}
	w.Exactly(t, ids...)
}

// A keeper that dies while a sandbox comes up, which nobody knows of yet, does not
// take its channel away.
func TestKeeperDiesDuringACreate(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w)
	w.Engine.Hook(func(ctx context.Context, step, _ string) error {
		if step != sandboxtest.Start {
			return nil
		}
		return errors.Join(forgetAll(ctx, w), s.Rekeep(ctx))
	})
	sb := create(t, w, s, sandbox.CreateRequest{})
	w.Exactly(t, sb.GenerationID)
	if row := state(t, w, sb.ID); row.State != meta.SandboxRunning {
		t.Errorf("it is %s", row.State)
	}
}

// Nor that of an engine that is being prepared.
func TestKeeperDiesDuringAPreparation(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize = 1 })
	w.Engine.Hook(func(ctx context.Context, step, gen string) error {
		g, err := w.Meta.Generation(ctx, gen)
		if err != nil || g.SandboxID != "" || step != sandboxtest.Start {
			return nil
		}
		return errors.Join(forgetAll(ctx, w), s.Rekeep(ctx))
	})
	create(t, w, s, sandbox.CreateRequest{})
	sandboxtest.Eventually(t, "the keeper has what is prepared", func() bool {
		_, _, ready := s.PoolStats()
		held, err := w.Keeper.List(t.Context())
		return err == nil && ready == 1 && len(held) == 2
	})
}
