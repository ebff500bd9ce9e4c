// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/cache"
	"github.com/opencomputer/oc/internal/store/refs"
	"github.com/opencomputer/oc/internal/store/seal"
)

// counted counts the reads of parts of objects, which fetch segments.
type counted struct {
	bucket.Bucket
	mu    sync.Mutex
	reads map[string]int // by key
}

func (c *counted) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	c.mu.Lock()
	c.reads[key]++
	c.mu.Unlock()
	return c.Bucket.ReadAt(ctx, key, p, off)
}

func (c *counted) total() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.reads {
		n += k
	}
	return n
}

// remoteVault is a vault as another machine's pager has it, with an empty cache.
func remoteVault(t *testing.T, b bucket.Bucket, keys *seal.Keys) *vault {
	t.Helper()
	c, err := cache.Open(filepath.Join(t.TempDir(), "cache"), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return &vault{b: b, cache: c, keys: keys, remote: true}
}

// restoring opens a checkpoint as a pager does.
func restoring(t *testing.T, v *vault, id string) *Image {
	t.Helper()
	im, err := v.image(t.Context(), refs.New(v.b, refsConfig), id, "cp-hot")
	if err != nil {
		t.Fatal(err)
	}
	im.warm()
	return im
}

func readPage(t *testing.T, f File, n int64) {
	t.Helper()
	if _, err := f.ReadAt(make([]byte, page), n*page); err != nil {
		t.Fatal(err)
	}
}

// The first restore from a remote store leaves the order of its first reads, and
// the next one fetches those segments by itself: once each, and no others.
func TestFirstReadsAreRememberedAndFetched(t *testing.T) {
	t.Parallel()
	keys, err := seal.ParseKeys([]byte(seal.Generate()))
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string]*seal.Keys{"clear": nil, "sealed": keys} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := seeded(t)
			b := &counted{Bucket: &buckettest.Memory{}, reads: map[string]int{}}
			s := openStore(t, b)
			s.vault.remote, s.vault.keys = true, keys
			g := newGuest(rng, 2000)
			want := g.content()
			id := mustPut(t, s, "cp-hot", want, "")

			first := restoring(t, remoteVault(t, b, keys), id)
			first.warming.Wait() // it knows now that there is no list
			pages := pagesOf(first.File(FilePages).Size())
			readPage(t, first.Bulk(), 0)
			for _, n := range []int64{pages - 1, pages / 2, pages / 2, pages - 1} {
				readPage(t, first.File(FilePages), n)
			}
			order := slices.Clone(first.hot.order)
			if len(order) == 0 || len(order) > 2 {
				t.Fatalf("two segments were read, remembered are %v", order)
			}
			first.Close()

			before := b.total()
			next := restoring(t, remoteVault(t, b, keys), id)
			next.warming.Wait()
			if n := b.total() - before - 1; n != len(order) { // one is the table
				t.Errorf("%d segments were fetched, not %d", n, len(order))
			}
			for _, k := range order {
				if s := next.table.Segments[k]; !next.packs[s.Pack].Has(int(s.First), int(s.Pages)) {
					t.Errorf("segment %d is not in the cache", k)
				}
			}
			before = b.total()
			readPage(t, next.File(FilePages), pages-1)
			readPage(t, next.File(FilePages), pages/2)
			if n := b.total() - before; n > 0 {
				t.Errorf("%d segments were fetched again", n)
			}
			compare(t, next, want, rng)
			kept, _, err := b.Get(t.Context(), next.manifest.Hot)
			if err != nil {
				t.Fatal(err)
			}
			next.Close()
			if again, _, err := b.Get(t.Context(), next.manifest.Hot); err != nil || !slices.Equal(again, kept) {
				t.Errorf("the list was written again (%v)", err)
			}
			if r, err := s.Check(t.Context(), true, nil); err != nil || len(r.Problems) > 0 {
				t.Errorf("check: %+v, %v", r, err)
			}
		})
	}
}

// Whoever closes the image of a checkpoint that was deleted and swept leaves
// nothing, and a list that makes no sense does no harm.
func TestFirstReadsOfADeletedCheckpoint(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	b := &buckettest.Memory{}
	s := openStore(t, b)
	s.vault.remote = true
	c := newGuest(rng, 300).content()
	id := mustPut(t, s, "cp-hot", c, "")
	im := restoring(t, remoteVault(t, b, nil), id)
	im.warming.Wait()
	readPage(t, im.File(FilePages), 0)
	key := im.manifest.Hot
	if err := b.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	im.Close()
	if _, _, err := b.Get(t.Context(), key); err == nil {
		t.Error("the list came back after it was deleted")
	}
	for _, list := range []string{"?", "OCHOTS2\n\xff\xff\xff\xff\x7f", "OCHOTS2\n\xff"} {
		if _, err := b.Put(t.Context(), key, []byte(list), bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
		im := restoring(t, remoteVault(t, b, nil), id)
		compare(t, im, c, rng)
		im.Close()
	}
}

// A server without the key of a checkpoint says so, and keeps what it cannot read.
func TestCheckpointOfAnotherKey(t *testing.T) {
	t.Parallel()
	b := &buckettest.Memory{}
	line := seal.Generate()
	keys, err := seal.ParseKeys([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	other, err := seal.ParseKeys([]byte(seal.Generate()))
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, b)
	s.vault.keys = keys
	id := mustPut(t, s, "cp-sealed", newGuest(seeded(t), 100).content(), "")
	for name, k := range map[string]*seal.Keys{"no keys": nil, "another key": other} {
		x := openStore(t, b)
		x.vault.keys = k
		x.unread = nil
		if err := x.survey(t.Context()); err != nil {
			t.Fatal(err)
		}
		if seen, ok := x.List()[id]; !ok || seen != "" {
			t.Errorf("%s: it is listed as %q, %v", name, seen, ok)
		}
		_, err := x.Image(t.Context(), id)
		wantFault(t, err, string(keys.Current()), "--store-keys")
		r, err := x.Check(t.Context(), true, nil)
		if err != nil || len(r.Damaged()) > 0 || len(r.Problems) != 1 || r.Leftovers > 0 {
			t.Errorf("%s: check: %+v, %v", name, r, err)
		}
		if swept, err := x.Sweep(t.Context(), refs.Options{Audit: true}); err != nil || swept.Packs > 0 {
			t.Errorf("%s: sweep: %+v, %v", name, swept, err)
		}
	}
	clear := openStore(t, b)
	clearID := mustPut(t, clear, "cp-clear", newGuest(seeded(t), 100).content(), "")
	_, err = s.Image(t.Context(), clearID)
	wantFault(t, err, "not sealed", "--store-keys")
}

// wantFault wants an Invalid fault with the text in its message and the hint in
// its hint.
func wantFault(t *testing.T, err error, text, hint string) {
	t.Helper()
	f := fault.As(err)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(f.Message, text) || !strings.Contains(f.Hint, hint) {
		t.Errorf("%v (%s), want %q and %q", err, f.Hint, text, hint)
	}
}
