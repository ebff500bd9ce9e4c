// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/cache"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/index"
	"github.com/opencomputer/oc/internal/store/refs"
)

const page = format.PageSize

func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func random(rng *rand.Rand, b []byte) {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rng.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
}

// openStore opens a store on a bucket as a server of its own.
func openStore(t testing.TB, b bucket.Bucket) *Store {
	t.Helper()
	return openStoreIn(t, b, t.TempDir())
}

// openStoreIn opens it as the server of a directory.
func openStoreIn(t testing.TB, b bucket.Bucket, dir string) *Store {
	t.Helper()
	ix, err := index.Open(filepath.Join(dir, "index"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(filepath.Join(dir, "cache"), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(Config{}, &vault{b: b, cache: c}, ix, slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	if s.spoiled, err = openSpoiled(filepath.Join(dir, "damaged")); err == nil {
		err = s.survey(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// guest is the memory of a sandbox: two files of the engine's whose pages change.
type guest struct {
	rng         *rand.Rand
	files       [2][]byte
	state, meta []byte
	holes       map[int]bool // pages of the first file that it does not have
}

func newGuest(rng *rand.Rand, pages int) *guest {
	g := &guest{rng: rng, holes: map[int]bool{}}
	g.files[0], g.files[1] = make([]byte, pages*page), make([]byte, pages/4*page)
	for i := range pages {
		switch rng.IntN(6) {
		case 0: // all zero
		case 1:
			g.holes[i] = true
		case 2: // compressible
			copy(g.files[0][i*page:], bytes.Repeat([]byte{byte(rng.IntN(255)), 1, 2}, page/3))
		case 3: // often the same
			random(rand.New(rand.NewPCG(uint64(rng.IntN(4)), 1)), g.files[0][i*page:][:page])
		default:
			random(rng, g.files[0][i*page:][:page])
		}
	}
	random(rng, g.files[1])
	g.run(0)
	return g
}

// run changes n pages, and the engine's own state.
func (g *guest) run(n int) {
	for range n {
		f := g.files[g.rng.IntN(2)]
		i := g.rng.IntN(len(f) / page)
		switch g.rng.IntN(4) {
		case 0:
			clear(f[i*page:][:page])
		case 1:
			f[i*page+g.rng.IntN(page)]++
		default:
			random(g.rng, f[i*page:][:page])
		}
		if g.rng.IntN(3) == 0 {
			h := g.rng.IntN(len(g.files[0]) / page)
			g.holes[h] = !g.holes[h]
		}
	}
	g.state, g.meta = make([]byte, 1+g.rng.IntN(5*page)), make([]byte, g.rng.IntN(2*page))
	random(g.rng, g.state)
	random(g.rng, g.meta)
}

// ranges are the pages that the guest has.
func (g *guest) ranges() (out []engine.PageRange) {
	for k, f := range g.files {
		for i := 0; i < len(f)/page; i++ {
			if k == 0 && g.holes[i] {
				continue
			}
			if n := len(out); n > 0 && out[n-1].Source == uint32(k) && out[n-1].Offset+out[n-1].Length == uint64(i*page) {
				out[n-1].Length += page
				continue
			}
			out = append(out, engine.PageRange{Source: uint32(k), Offset: uint64(i * page), Length: page})
		}
	}
	return out
}

// content is what the three files of a whole capture hold.
type content struct {
	files  [3][]byte
	ranges []engine.PageRange
}

func (g *guest) content() content {
	c := content{files: [3][]byte{bytes.Clone(g.state), bytes.Clone(g.meta), nil}, ranges: g.ranges()}
	for _, r := range c.ranges {
		c.files[2] = append(c.files[2], g.files[r.Source][r.Offset:][:r.Length]...)
	}
	return c
}

// capture gives the capture of a content, of what differs from a base if that is
// not nil.
func (c content) capture(base *engine.Base) *engine.Capture {
	out := &engine.Capture{
		State: bytes.NewReader(c.files[0]), StateSize: int64(len(c.files[0])), Meta: bytes.NewReader(c.files[1]), MetaSize: int64(len(c.files[1])),
		PagesSize: int64(len(c.files[2])), Ranges: c.ranges, Close: func() {},
	}
	if base == nil {
		out.Pages = bytes.NewReader(c.files[2])
		return out
	}
	ids := identify(base.Ranges)
	var held []byte
	out.Copied = []engine.PageRun{}
	n := int64(0)
	for _, r := range c.ranges {
		for o := uint64(0); o < r.Length; o += page {
			b := c.files[2][n*page:][:page]
			at, ok := ids.find(r.Source, r.Offset+o)
			if ok == 0 || base.Hashes[at] != xxh3.HashSeed(b, base.Seed) {
				if k := len(out.Copied); k > 0 && out.Copied[k-1].Page+out.Copied[k-1].Count == n {
					out.Copied[k-1].Count++
				} else {
					out.Copied = append(out.Copied, engine.PageRun{Page: n, Count: 1, At: int64(len(held))})
				}
				held = append(held, b...)
			}
			n++
		}
	}
	out.Pages = bytes.NewReader(held)
	return out
}

// mustPut stores a content, based on an earlier checkpoint if there is one.
func mustPut(t testing.TB, s *Store, name string, c content, base string) string {
	t.Helper()
	id, err := tryPut(t.Context(), s, name, c, base)
	if err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
	return id
}

func tryPut(ctx context.Context, s *Store, name string, c content, base string) (string, error) {
	req := PutRequest{Manifest: Manifest{Checkpoint: name, Org: "org-1", CreatedAt: time.Unix(1, 0).UTC()}}
	var b *engine.Base
	if base != "" {
		im, err := s.Image(ctx, base)
		if err != nil {
			return "", err
		}
		defer im.Close()
		if b, err = im.Base(ctx); err != nil {
			return "", err
		}
		req.Base = im
	}
	req.Capture = c.capture(b)
	id, _, err := s.Put(ctx, req)
	return id, err
}

// check compares a stored checkpoint with what it must be.
func check(t testing.TB, s *Store, id string, want content, rng *rand.Rand) {
	t.Helper()
	im, err := s.Image(t.Context(), id)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer im.Close()
	compare(t, im, want, rng)
	if err := im.Verify(t.Context(), nil); err != nil {
		t.Errorf("verify: %v", err)
	}
}

// openBase opens a checkpoint, to be closed, and what captures on it are compared with.
func openBase(t *testing.T, s *Store, id string) (*Image, *engine.Base) {
	t.Helper()
	im, err := s.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := im.Base(t.Context())
	if err != nil {
		im.Close()
		t.Fatal(err)
	}
	return im, b
}

func compare(t testing.TB, im Checkpoint, want content, rng *rand.Rand) {
	t.Helper()
	for i, name := range fileNames {
		f := im.File(name)
		if f.Size() != int64(len(want.files[i])) {
			t.Fatalf("%s has %d bytes, want %d", name, f.Size(), len(want.files[i]))
		}
		got := make([]byte, f.Size())
		if n, err := f.ReadAt(got, 0); n != len(got) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, want.files[i]) {
			t.Fatalf("%s is another (%d bytes, %v)", name, n, err)
		}
		for range 20 {
			if len(got) == 0 {
				break
			}
			off := rng.IntN(len(got))
			b := make([]byte, 1+rng.IntN(len(got)-off))
			if _, err := f.ReadAt(b, int64(off)); err != nil || !bytes.Equal(b, want.files[i][off:][:len(b)]) {
				t.Fatalf("%s at %d: %d bytes are others (%v)", name, off, len(b), err)
			}
		}
	}
	got := im.Ranges()
	if len(got) != len(want.ranges) {
		t.Fatalf("%d ranges, want %d", len(got), len(want.ranges))
	}
	for i := range got {
		if got[i] != want.ranges[i] {
			t.Fatalf("range %d is %v, want %v", i, got[i], want.ranges[i])
		}
	}
}

// A chain of checkpoints and forks reads as what each captured, whether the
// pages come from the bucket or the cache, also for a server that knows nothing,
// and after any of the others were deleted and swept.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	b := &buckettest.Memory{}
	s := openStore(t, b)
	g := newGuest(rng, 400)
	want := map[string]content{}
	base := ""
	for i := range 12 {
		c := g.content()
		id := mustPut(t, s, "cp-"+string(rune('a'+i)), c, base)
		want[id] = c
		if base = id; rng.IntN(4) == 0 {
			base = ""
		}
		g.run(rng.IntN(60))
		if rng.IntN(2) == 0 {
			for old := range want {
				if len(want) > 3 && old != base {
					delete(want, old)
					if err := s.Delete(t.Context(), old); err != nil {
						t.Fatal(err)
					}
				}
				break
			}
			if _, err := s.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
				t.Fatal(err)
			}
		}
		other := openStore(t, b)
		for id, c := range want {
			check(t, s, id, c, rng)
			check(t, other, id, c, rng)
			im, kept := openBase(t, s, id)
			im.Close()
			im, read := openBase(t, other, id)
			im.Close()
			if !reflect.DeepEqual(kept, read) {
				t.Errorf("the next capture on %s is compared with %+v, and by a server that knows nothing with %+v", id, kept, read)
			}
		}
	}
	for id := range want {
		if err := s.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Image(t.Context(), id); !fault.Is(err, fault.NotFound) {
			t.Errorf("a deleted checkpoint opens: %v", err)
		}
	}
	for range 2 {
		if _, err := s.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
			t.Fatal(err)
		}
	}
	if left, _, err := b.List(t.Context(), "", "", 0); err != nil || len(left) > 0 {
		t.Errorf("%d objects are left, such as %v (%v)", len(left), left, err)
	}
}
