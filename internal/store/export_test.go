// SPDX-License-Identifier: Apache-2.0

package store

import (
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/store/cache"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/index"
)

// OpenAsRemote opens a store in a directory as if it were far away: with first
// reads.
func OpenAsRemote(t testing.TB, dir, keyFile string) *Store {
	t.Helper()
	v, err := openVault(t.Context(), Config{Dir: dir, KeyFile: keyFile})
	if err != nil {
		t.Fatal(err)
	}
	v.remote = true
	if v.cache, err = cache.Open(filepath.Join(t.TempDir(), "cache"), 1<<30); err != nil {
		t.Fatal(err)
	}
	ix, err := index.Open(filepath.Join(t.TempDir(), "index"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(Config{}, v, ix, slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	return s
}

// Restore reads pages of a checkpoint, all if none are named, as the first who
// restores it.
func (s *Store) Restore(t *testing.T, id string, pages ...int64) {
	t.Helper()
	im := restoring(t, s.vault, id)
	im.warming.Wait()
	for n := range pagesOf(im.File(FilePages).Size()) { // many are all zero
		if len(pages) == 0 {
			readPage(t, im.File(FilePages), n)
		}
	}
	for _, n := range pages {
		readPage(t, im.File(FilePages), n)
	}
	im.Close()
}

// FirstReads are those that are kept of a checkpoint, as the next who restores it
// has them; nil if there are none.
func (s *Store) FirstReads(t *testing.T, id string) (segments []uint64) {
	t.Helper()
	im, err := s.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.manifest.Hot == "" {
		return nil
	}
	raw, _, err := s.vault.b.Get(t.Context(), im.manifest.Hot)
	if err == nil {
		raw, err = s.vault.open(raw, im.manifest.Hot, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) == 0 {
		return nil
	}
	order, err := format.DecodeHot(raw, len(im.table.Segments))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range order {
		segments = append(segments, uint64(k))
	}
	return segments
}

// Content is what a checkpoint of PutChain must read as.
type Content struct {
	Files  [3][]byte
	Ranges []engine.PageRange
}

// PutChain has tests from outside store n checkpoints of a random guest, most of
// them on the one before; it gives what they hold by the ids that users see.
func PutChain(t testing.TB, s *Store, n int) map[string]Content {
	t.Helper()
	rng := seeded(t)
	g := newGuest(rand.New(rand.NewPCG(rng.Uint64(), 0)), 200)
	out := map[string]Content{}
	base := ""
	for i := range n {
		name, c := "cp-"+string(rune('a'+i)), g.content()
		if base = mustPut(t, s, name, c, base); rng.IntN(4) == 0 {
			base = ""
		}
		out[name] = Content{c.files, c.ranges}
		g.run(rng.IntN(60))
	}
	return out
}
