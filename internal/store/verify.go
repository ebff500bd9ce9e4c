// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/store/format"
)

// Verify implements Checkpoint, on all CPUs; what is not local comes into the
// cache.
func (im *Image) Verify(ctx context.Context, progress func(done, total int64)) error {
	return im.verifyAll(ctx, nil, progress)
}

// Usable implements Checkpoint: as Verify, but of a segment that is read from the
// bucket each time it looks only at the pages that this checkpoint has of it, and
// only by their cheap hashes: the deeper a chain, the more in its segments is of
// other checkpoints only. Reads check again, by the strong hashes, and let by what
// passes here: see fetch.
func (im *Image) Usable(ctx context.Context) error {
	c, _ := im.cheapHashes(ctx) // without them all is checked by the strong ones
	return im.verifyAll(ctx, c, nil)
}

// verifyAll checks the segments, pack by pack. What matches its cheap hashes, if
// they are given, needs no strong one.
func (im *Image) verifyAll(ctx context.Context, c *cheapHashes, progress func(done, total int64)) error {
	segments := im.table.Segments
	order := make([]int, len(segments))
	var total int64
	for i, s := range segments {
		order[i] = i
		total += int64(s.Size)
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := &segments[i], &segments[j]
		return cmp.Or(cmp.Compare(a.Pack, b.Pack), cmp.Compare(a.Offset, b.Offset))
	})
	var mu sync.Mutex
	var done int64
	report := func(n uint32) {
		mu.Lock()
		defer mu.Unlock()
		if done += int64(n); progress != nil {
			progress(done, total)
		}
	}
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(max(runtime.GOMAXPROCS(0), im.vault.parallel()), len(order)) {
		g.Go(func() error {
			var room []byte // for one segment after the other
			for n := next.Add(1) - 1; n < int64(len(order)) && ctx.Err() == nil; n = next.Add(1) - 1 {
				if err := im.verify(ctx, order[n], c, &room); err != nil {
					return err
				}
				report(segments[order[n]].Size)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), parent.Err())
}

// verify checks segment i, unless the cache has it.
func (im *Image) verify(ctx context.Context, i int, c *cheapHashes, room *[]byte) error {
	s := &im.table.Segments[i]
	if im.vault.direct(s.Codec) {
		b, err := im.read(ctx, i, *room)
		if err != nil {
			return err
		}
		if *room = b; c.match(i, b) {
			return nil
		}
		return im.prove(i, b)
	}
	if im.packs[s.Pack].Has(int(s.First), int(s.Pages)) {
		return nil
	}
	_, err := im.fetch(ctx, i)
	return err
}

// spared tells whether the damage in what was read of segment i is in no page of
// this checkpoint.
func (im *Image) spared(ctx context.Context, i int, b []byte) bool {
	c, err := im.cheapHashes(ctx)
	return err == nil && c.match(i, b)
}

// cheapHashes are the cheap hashes of a checkpoint's pages, by where these are
// stored: the pages of a segment can be told one by one that share its strong hash
// with pages of other checkpoints.
type cheapHashes struct {
	seed uint64
	// of has those of each segment by slot, 0 for a page that the checkpoint does
	// not have. It is nil for a segment that cannot be told by them.
	of [][]uint64
}

// match tells whether all pages that the checkpoint has of segment i are right in
// what was read of it.
func (c *cheapHashes) match(i int, b []byte) bool {
	if c == nil || c.of[i] == nil || len(b) != len(c.of[i])*format.PageSize {
		return false
	}
	for slot, want := range c.of[i] {
		if want != 0 && xxh3.HashSeed(b[slot*format.PageSize:][:format.PageSize], c.seed) != want {
			return false
		}
	}
	return true
}

// cheapHashes gives those of the segments that are read from the bucket each time,
// and stored as they are: of pages of the pages file, which alone have some.
func (im *Image) cheapHashes(ctx context.Context) (*cheapHashes, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.cheap != nil {
		return im.cheap, nil
	}
	base, err := im.loadBase(ctx)
	if err != nil {
		return nil, err
	}
	c := &cheapHashes{seed: base.Seed, of: make([][]uint64, len(im.table.Segments))}
	for k, s := range im.table.Segments {
		if im.vault.direct(s.Codec) && s.Codec == format.Raw && im.vault.keys == nil {
			c.of[k] = make([]uint64, s.Pages)
		}
	}
	for i := range im.table.Files { // the pages file is the last
		im.table.Each(i, func(page int64, k, slot, n int) {
			if i != pagesFile || slices.Contains(base.Hashes[page:][:n], 0) {
				c.of[k] = nil
			} else if c.of[k] != nil {
				copy(c.of[k][slot:], base.Hashes[page:][:n])
			}
		})
	}
	im.cheap = c
	return c, nil
}
