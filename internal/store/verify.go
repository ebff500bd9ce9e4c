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

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
)

// ErrNotNeeded says of damage that it keeps nothing from being read.
var ErrNotNeeded = errors.New("nothing that can be read of it is damaged")

// Verify implements Checkpoint, on all CPUs. It reads everything from the bucket,
// whatever is in the cache; what is not there comes there. Damage in the table of
// hashes alone is ErrNotNeeded: the next checkpoint copies more than it would.
func (im *Image) Verify(ctx context.Context, progress func(done, total int64)) error {
	m := im.manifest
	parts := im.verifySegments(func(ctx context.Context, i int, room *[]byte) error { return im.verify(ctx, i, nil, true, room) })
	for _, b := range []*Blob{m.Engine, m.Image} {
		for i := 0; b != nil && i < len(b.Parts); i++ {
			parts = append(parts, im.verifyObject(b.Parts[i]))
		}
	}
	if err := verifyAll(ctx, im.vault, parts, progress); err != nil {
		return err
	}
	err := im.verifyObject(m.Hashes).verify(ctx, nil)
	if fault.Is(err, fault.Damaged) {
		return fault.Wrap(fault.Invalid, ErrNotNeeded, "checkpoint %s can be used, but its table of hashes is damaged", m.Checkpoint).
			WithHint("nothing needs to be done: the next checkpoint of a sandbox made of it is larger")
	}
	return err
}

// Usable implements Checkpoint: as Verify, but only of what is read of the pages
// when it is restored, and with the cache trusted. Of a segment that is read from the
// bucket each time it looks only at the pages that this checkpoint has of it, and
// only by their cheap hashes: the deeper a chain, the more in its segments is of
// other checkpoints only. Reads check again, by the strong hashes, and let by what
// passes here: see fetch.
func (im *Image) Usable(ctx context.Context) error {
	c, _ := im.cheapHashes(ctx) // without them all is checked by the strong ones
	return verifyAll(ctx, im.vault, im.verifySegments(func(ctx context.Context, i int, room *[]byte) error {
		return im.verify(ctx, i, c, false, room)
	}), nil)
}

// verified is a part of what is to be checked.
type verified struct {
	size   int64
	verify func(ctx context.Context, room *[]byte) error // room is for bytes that are not kept
}

// verifySegments are the segments, pack by pack.
func (im *Image) verifySegments(verify func(ctx context.Context, i int, room *[]byte) error) []verified {
	segments := im.table.Segments
	order := make([]int, len(segments))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := &segments[i], &segments[j]
		return cmp.Or(cmp.Compare(a.Pack, b.Pack), cmp.Compare(a.Offset, b.Offset))
	})
	parts := make([]verified, len(order))
	for n, i := range order {
		parts[n] = verified{int64(segments[i].Size), func(ctx context.Context, room *[]byte) error { return verify(ctx, i, room) }}
	}
	return parts
}

// verifyObject is an object that the manifest names.
func (im *Image) verifyObject(o Object) verified {
	return verified{o.Size, func(ctx context.Context, _ *[]byte) error {
		_, err := im.vault.object(ctx, im.manifest.Checkpoint, o)
		return err
	}}
}

// verifyAll checks the parts, in about their order.
func verifyAll(ctx context.Context, v *vault, parts []verified, progress func(done, total int64)) error {
	var mu sync.Mutex
	var done, total int64
	for _, p := range parts {
		total += p.size
	}
	report := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		if done += n; progress != nil {
			progress(done, total)
		}
	}
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(max(runtime.GOMAXPROCS(0), v.parallel()), len(parts)) {
		g.Go(func() error {
			var room []byte // for one segment after the other
			for n := next.Add(1) - 1; n < int64(len(parts)) && ctx.Err() == nil; n = next.Add(1) - 1 {
				if err := parts[n].verify(ctx, &room); err != nil {
					return err
				}
				report(parts[n].size)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), parent.Err())
}

// verify checks segment i, stored or, unless stored is demanded, in the cache. What
// matches its cheap hashes, if they are given, needs no strong one.
func (im *Image) verify(ctx context.Context, i int, c *cheapHashes, stored bool, room *[]byte) error {
	s := &im.table.Segments[i]
	has := !im.vault.direct(s.Codec) && im.packs[s.Pack].Has(int(s.First), int(s.Pages))
	if has && !stored {
		return nil
	}
	if !has && !im.vault.direct(s.Codec) {
		_, err := im.fetch(ctx, i)
		return err
	}
	b, err := im.read(ctx, i, *room)
	if err != nil {
		return err
	}
	if *room = b; c.match(i, b) {
		return nil
	}
	return im.prove(i, b)
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
