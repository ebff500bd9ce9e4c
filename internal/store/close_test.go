// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
)

// A store, and a checkpoint that another process has opened, give back what the
// bucket holds when they are closed, or could not be opened.
func TestCloseGivesTheBucketBack(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	cfg := Config{Dir: t.TempDir(), State: t.TempDir()}
	left := func(when string) {
		t.Helper()
		writers, err := os.ReadDir(filepath.Join(cfg.Dir, ".tmp"))
		if err != nil || len(writers) > 0 {
			t.Errorf("%s: %d writers' directories are left (%v)", when, len(writers), err)
		}
	}
	s, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c := newGuest(rng, 20).content()
	id := mustPut(t, s, "cp-1", c, "")
	where := s.Location(id)
	s.Close()
	left("the store is closed")
	im, err := Reach(t.Context(), where, nil)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, im, c, rng)
	im.Close()
	left("the checkpoint is closed")
	if _, err := Reach(t.Context(), mustLocation(cfg, manifestName(id), "cp-1"), nil); err == nil {
		t.Error("a checkpoint that is not there was opened")
	}
	left("there is no such checkpoint")
	cfg.KeyFile = filepath.Join(cfg.State, "missing")
	if _, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("opened without its key file")
	}
	left("there is no key file")
}

// watched tells of deletions that wait for the bucket without an end.
type watched struct {
	bucket.Bucket
	unbounded atomic.Int32
}

func (w *watched) Delete(ctx context.Context, key string) error {
	if _, ok := ctx.Deadline(); !ok {
		w.unbounded.Add(1)
	}
	return w.Bucket.Delete(ctx, key)
}

// Whoever closes an image, as a server does at its end, waits for a bucket that is
// gone only so long.
func TestCloseOfAnImageIsBounded(t *testing.T) {
	t.Parallel()
	w := &watched{Bucket: &buckettest.Memory{}}
	s := openStore(t, w)
	id := mustPut(t, s, "cp-1", newGuest(seeded(t), 10).content(), "")
	im, err := s.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	w.unbounded.Store(0)
	im.Close()
	if n := w.unbounded.Load(); n > 0 {
		t.Errorf("%d requests without an end", n)
	}
}
