// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/dir"
	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/store"
	"github.com/opencomputer/oc/internal/store/refs"
)

// What a killed server was writing is freed soon after its claim has expired,
// though nobody deletes anything; what a living one is writing is not.
func TestExpiredClaimsAreFreed(t *testing.T) {
	t.Parallel()
	inStore(t, func(t *testing.T, where store.Config, b bucket.Bucket) {
		living, kept := written(t, b)
		dead, lost := written(t, b)
		killed(t, b, dead, lost)
		s := sweeping(t, where)
		defer s.cfg.Store.Close()
		defer s.Close()

		time.Sleep(refs.DefaultTTL - time.Second)
		if !exists(t, b, lost) {
			t.Error("packs are gone whose claim had not expired")
		}
		time.Sleep(sweepEvery + 2*sweepDelay)
		if exists(t, b, lost) || exists(t, b, refs.Prefix+dead.ID()) {
			t.Error("an expired claim still holds what it held")
		}
		time.Sleep(10 * sweepEvery)
		if !exists(t, b, kept) {
			t.Error("the packs of a living writer are gone")
		}
		if err := living.Abort(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// However often something is deleted, what is free already is freed.
func TestSweepComesWhileMuchIsDeleted(t *testing.T) {
	t.Parallel()
	inStore(t, func(t *testing.T, where store.Config, b bucket.Bucket) {
		dead, lost := written(t, b)
		killed(t, b, dead, lost)
		s := sweeping(t, where)
		defer s.cfg.Store.Close()
		defer s.Close()
		time.Sleep(refs.DefaultTTL + time.Second)
		for range 10 {
			s.kick()
			time.Sleep(sweepDelay / 2)
		}
		if exists(t, b, lost) {
			t.Error("nothing is freed while more is deleted")
		}
	})
}

// inStore runs a test in a bubble, with an empty store's directory.
func inStore(t *testing.T, test func(*testing.T, store.Config, bucket.Bucket)) {
	t.Helper()
	where := store.Config{Dir: t.TempDir(), State: t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		b, err := dir.Open(where.Dir, durable.Disk{})
		if err != nil {
			t.Fatal(err)
		}
		test(t, where, b)
	})
}

// written is a writer that has put a pack.
func written(t *testing.T, b bucket.Bucket) (w *refs.Writer, pack string) {
	t.Helper()
	w, err := refs.New(b, refs.Config{}).Begin(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if pack, err = w.NewPack(); err == nil {
		err = w.Put(t.Context(), pack, []byte("pages"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return w, pack
}

// sweeping is a service that only sweeps a store, and has no rows.
func sweeping(t *testing.T, where store.Config) *Service {
	t.Helper()
	st, err := store.Open(t.Context(), where, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	db, err := meta.Open(t.Context(), filepath.Join(where.State, "meta.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s := &Service{cfg: Config{Meta: db, Store: st, Log: slog.New(slog.DiscardHandler)}, tidy: time.NewTimer(0), swept: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	s.wg.Go(s.sweep)
	return s
}

// killed leaves of a writer what its death would: the claim, that nobody renews,
// and a pack.
func killed(t *testing.T, b bucket.Bucket, w *refs.Writer, pack string) {
	t.Helper()
	claim, _, err := b.Get(t.Context(), refs.Prefix+w.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	for key, body := range map[string][]byte{refs.Prefix + w.ID(): claim, pack: []byte("pages")} {
		if _, err := b.Put(t.Context(), key, body, bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

func exists(t *testing.T, b bucket.Bucket, key string) bool {
	t.Helper()
	page, _, err := b.List(t.Context(), key, "", 1)
	if err != nil {
		t.Fatal(err)
	}
	return len(page) > 0
}
