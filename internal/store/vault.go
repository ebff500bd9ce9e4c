// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/store/cache"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/seal"
)

// vault is where stored bytes are and how they are sealed.
type vault struct {
	b      bucket.Bucket
	keys   *seal.Keys   // nil: nothing is sealed
	cache  *cache.Cache // nil: there is none
	remote bool
	bases  bases
	end    func() // gives back what the bucket holds; nil: nothing
}

// close ends the use of the bucket, of which nothing may be asked after it.
func (v *vault) close() {
	if v.end != nil {
		v.end()
	}
}

// indexPart is the associated number of a pack's index; those of its segments
// are the numbers of their first pages.
const indexPart = 1<<64 - 1

// direct tells that reading pages of the codec from the bucket is as good as
// from the cache.
func (v *vault) direct(c format.Codec) bool {
	return v.cache == nil || c == format.Raw && !v.remote && v.keys == nil
}

// parallel is how many requests at a time a bucket answers well.
func (v *vault) parallel() int {
	if v.remote {
		return 16
	}
	return 1
}

func (v *vault) ad(part uint64) []byte { return fmt.Appendf(nil, "%d", part) }

// seal closes bytes for part of an object.
func (v *vault) seal(b []byte, object string, part uint64) []byte {
	if v.keys == nil {
		return b
	}
	return v.keys.Seal(nil, b, object, v.ad(part))
}

// open undoes seal.
func (v *vault) open(b []byte, object string, part uint64) ([]byte, error) {
	if v.keys == nil {
		return b, nil
	}
	return v.keys.Open(nil, b, object, v.ad(part))
}

// object reads an object that a manifest names, verified.
func (v *vault) object(ctx context.Context, checkpoint string, o Object) ([]byte, error) {
	b := make([]byte, o.Size)
	if err := v.b.ReadAt(ctx, o.Key, b, 0); err != nil {
		return nil, unreadable(checkpoint, err, "its object %s", o.Key)
	}
	if hexSum(b) != o.Blake3 {
		return nil, Damaged(checkpoint, "its object %s does not match its hash", o.Key)
	}
	b, err := v.open(b, o.Key, 0)
	if errors.Is(err, seal.ErrDamaged) {
		return nil, Damaged(checkpoint, "its object %s: %v", o.Key, err)
	}
	if err != nil {
		return nil, fmt.Errorf("store: checkpoint %s: %w", checkpoint, err)
	}
	return b, nil
}

// dedupKey keys the hashes of the pages of an org: equal pages of two orgs, or
// under two keys, have different ones.
func (v *vault) dedupKey(org string) [32]byte {
	return v.keys.DedupKey(org)
}

// cached is a pack in the cache, opened when it is first wanted. All methods of
// one that cannot be had do nothing.
type cached struct {
	v    *vault
	name string
	once sync.Once
	p    *cache.Pack
}

func (v *vault) pack(name string) *cached { return &cached{v: v, name: name} }

func (c *cached) open() *cache.Pack {
	c.once.Do(func() {
		if c.v.cache != nil {
			c.p, _ = c.v.cache.Pack(cacheName(c.name), cache.MaxSlots) // without it everything is a miss
		}
	})
	return c.p
}

// cacheName is a pack's name as that of a file.
func cacheName(pack string) string { return hexSum([]byte(pack))[:40] }

// Read fills p with the pages from a slot on, if they are all there.
func (c *cached) Read(p []byte, slot int) bool {
	k := c.open()
	return k != nil && k.Read(p, slot)
}

// ReadPart fills the beginning of p with what is there from skip bytes into a slot on,
// and tells how much: whole pages, or what p takes of one.
func (c *cached) ReadPart(p []byte, slot, skip int) (n int, ok bool) {
	if whole := len(p) - len(p)%format.PageSize; skip == 0 && whole > 0 {
		return whole, c.Read(p[:whole], slot)
	}
	var page [format.PageSize]byte
	if !c.Read(page[:], slot) {
		return 0, false
	}
	return copy(p, page[skip:]), true
}

// Has tells whether n pages from a slot on are there.
func (c *cached) Has(slot, n int) bool {
	k := c.open()
	return k != nil && k.Has(slot, n)
}

// Write puts pages there.
func (c *cached) Write(p []byte, slot int) {
	if k := c.open(); k != nil {
		_ = k.Write(p, slot) // what is not cached is read again
	}
}

func (c *cached) close() {
	c.once.Do(func() {})
	if c.p != nil {
		_ = c.p.Close() // of a cache
	}
}
