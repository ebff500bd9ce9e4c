// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/refs"
)

// counting counts what is read of a bucket.
type counting struct {
	bucket.Bucket
	requests, bytes atomic.Int64
}

// Get implements bucket.Bucket.
func (c *counting) Get(ctx context.Context, key string) ([]byte, string, error) {
	b, etag, err := c.Bucket.Get(ctx, key)
	c.requests.Add(1)
	c.bytes.Add(int64(len(b)))
	return b, etag, err
}

// ReadAt implements bucket.Bucket.
func (c *counting) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	c.requests.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.Bucket.ReadAt(ctx, key, p, off)
}

// work is what reading a checkpoint takes.
type work struct {
	open, openBytes int64 // requests until its first page can be read, and their bytes
	requests, bytes int64 // for all of it
	packs, segments int
	runs, pages     int64 // of its table
}

func (w work) String() string {
	return fmt.Sprintf("opened by %d requests for %d KB, read by %d for %d KB: %d segments of %d packs, %d KB of contents, %d runs",
		w.open, w.openBytes>>10, w.requests, w.bytes>>10, w.segments, w.packs, w.pages*format.PageSize>>10, w.runs)
}

// reading reads a checkpoint as a server that knows nothing, and compares it.
func reading(t *testing.T, b bucket.Bucket, id string, want content) work {
	t.Helper()
	c := &counting{Bucket: b}
	s := openStore(t, c)
	c.requests.Store(0) // what a server reads at its start is another matter
	c.bytes.Store(0)
	im, err := s.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	w := work{open: c.requests.Load(), openBytes: c.bytes.Load(), packs: len(im.table.Packs), segments: len(im.table.Segments)}
	if err := im.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.requests, w.bytes = c.requests.Load()-w.open, c.bytes.Load()-w.openBytes
	for _, f := range im.table.Files {
		w.runs += int64(len(f.Runs))
		for i, r := range f.Runs {
			if r.Segment != format.Zero {
				w.pages += f.End(i) - r.Page
			}
		}
	}
	compare(t, im, want, seeded(t))
	return w
}

// What the last checkpoint of a long chain takes to open is what its contents take,
// however deep it is, and reading all of it takes at most one segment more per
// checkpoint of the chain, which holds no more than that one stored. Where the same
// pages change again and again it takes no more at all.
func TestChain(t *testing.T) {
	t.Parallel()
	const pages, depth = 2048, 50
	const changed = pages / 100
	for name, tc := range map[string]struct {
		change func(g *guest)
		most   int // segments more than for its contents alone
	}{
		"scattered": {func(g *guest) {
			for range changed {
				random(g.rng, g.files[0][g.rng.IntN(pages)*page:][:page])
			}
		}, 2 * depth},
		"together":   {func(g *guest) { random(g.rng, g.files[0][g.rng.IntN(pages-changed)*page:][:changed*page]) }, 2 * depth},
		"same place": {func(g *guest) { random(g.rng, g.files[0][100*page:][:changed*page]) }, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &buckettest.Memory{}
			s := openStore(t, b)
			g := newGuest(seeded(t), pages)
			id := mustPut(t, s, "cp-0", g.content(), "")
			for i := 1; i < depth; i++ {
				tc.change(g)
				next := mustPut(t, s, fmt.Sprintf("cp-%d", i), g.content(), id)
				if i > 1 { // but the first all of its ancestors go
					if err := s.Delete(t.Context(), id); err != nil {
						t.Fatal(err)
					}
				}
				id = next
			}
			if _, err := s.Sweep(t.Context(), refs.Options{}); err != nil {
				t.Fatal(err)
			}
			last := reading(t, b, id, g.content())
			fresh := &buckettest.Memory{}
			alone := reading(t, fresh, mustPut(t, openStore(t, fresh), "cp", g.content(), ""), g.content())
			t.Logf("at the end of the chain it is %v\nalone it is %v", last, alone)
			if last.open != alone.open || last.openBytes > 3*alone.openBytes {
				t.Errorf("opening takes %d requests for %d bytes, not %d for %d", last.open, last.openBytes, alone.open, alone.openBytes)
			}
			if last.requests != int64(last.segments)+1 || last.segments > alone.segments+tc.most {
				t.Errorf("reading takes %d requests for %d segments and the hashes; alone there are %d", last.requests, last.segments, alone.segments)
			}
			if most := alone.bytes + int64(tc.most)*changed*page; last.bytes > most {
				t.Errorf("reading takes %d bytes; alone it takes %d", last.bytes, alone.bytes)
			}
		})
	}
}
