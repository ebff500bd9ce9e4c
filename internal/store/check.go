// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/refs"
)

// Problem is something that Check found.
type Problem struct {
	Checkpoint string // the id that users see, if it can be told
	Object     string // the checkpoint's object in the store, "" for none
	Key        string // what is wrong
	What       string
	// Harmless tells that every checkpoint can still be used.
	Harmless bool
}

// CheckReport is the result of Check.
type CheckReport struct {
	Checkpoints int   // complete ones, sound or not
	Packs       int   // packs and other objects that they need
	Bytes       int64 // of those
	Leftovers   int   // objects that no checkpoint needs; a sweep removes those that nobody claims
	LeftBytes   int64
	Problems    []Problem

	// Objects are the ids of the checkpoints' objects that there were, sound or not.
	Objects map[string]bool
	// Whole are those of which every byte was read, and all that is needed of them was
	// right. Without readData there are none.
	Whole map[string]bool
}

// Damaged are the checkpoints' objects that cannot be used, with the first reason
// of each.
func (r *CheckReport) Damaged() map[string]string {
	out := map[string]string{}
	for _, p := range r.Problems {
		if _, ok := out[p.Object]; !ok && !p.Harmless && p.Object != "" {
			out[p.Object] = p.What
		}
	}
	return out
}

// prefixes of everything in a store but the checkpoints' objects.
var prefixes = []string{kindEngine + "/", kindImage + "/", "packs/"}

// Check looks at every object of the store, and with readData at every byte. It
// fails only if it cannot look.
func (s *Store) Check(ctx context.Context, readData bool, progress func(done, total int64)) (*CheckReport, error) {
	c := &checker{
		v: s.vault, r: &CheckReport{Objects: map[string]bool{}}, sizes: map[string]int64{}, needed: map[string][]string{},
		names: map[string]string{}, segments: map[string]map[neededSegment][]string{}, parts: map[string]Object{},
		sound: map[string]bool{}, sealed: map[string]bool{},
	}
	claimed := map[string]bool{} // keys, and the objects whose own keys may all be needed
	err := s.refs.List(ctx, func(o *refs.Object, err error) error {
		claimed[o.ID] = o.State != refs.Deleting && o.State != refs.Revoked
		c.r.Objects[o.ID] = err != nil || o.State == refs.Committed
		for _, k := range o.Packs {
			claimed[k] = claimed[o.ID]
		}
		if err != nil {
			c.problem(Problem{Object: o.ID, Key: manifestName(o.ID), What: err.Error(), Harmless: errors.Is(err, refs.ErrNewer)})
		} else if o.State == refs.Committed {
			claimed[o.ID] = false // it lists what it needs
			if err := c.checkpoint(ctx, o); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, p := range prefixes { // now: what a checkpoint needs was there before it
		if err := s.vault.list(ctx, p, func(o bucket.Object) { c.sizes[o.Key] = o.Size }); err != nil {
			return nil, err
		}
	}
	for k, n := range c.sizes {
		if id, _ := refs.Owner(k); !claimed[k] && !claimed[id] {
			c.r.Leftovers++
			c.r.LeftBytes += n
		}
	}
	if err := c.packs(ctx, readData, progress); err != nil {
		return nil, err
	}
	s.distrust(c.spoiled(), c.fine) // before it is forgiven: others may come to need it
	if readData {
		c.r.Whole = c.whole()
	}
	if err := c.forgive(ctx, s.refs); err != nil {
		return nil, err
	}
	slices.SortFunc(c.r.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Key, b.Key), cmp.Compare(a.What, b.What))
	})
	return c.r, nil
}

type checker struct {
	v     *vault
	sizes map[string]int64

	mu       sync.Mutex
	r        *CheckReport
	needed   map[string][]string                   // objects' ids by key that they need
	names    map[string]string                     // checkpoints' ids by their objects'
	segments map[string]map[neededSegment][]string // by pack: ids of the objects that have pages of each
	parts    map[string]Object                     // of files that checkpoints rest on
	sound    map[string]bool                       // packs and parts that were looked at: whether all was read and right
	sealed   map[string]bool                       // those that cannot be opened for want of a key
}

// neededSegment is a segment of a pack, as a table tells it.
type neededSegment struct {
	offset int64
	size   uint32
	sum    [32]byte
}

// forgive takes back what was found of checkpoints that were deleted meanwhile.
func (c *checker) forgive(ctx context.Context, log *refs.Log) error {
	gone := map[string]bool{}
	for _, p := range c.r.Problems {
		if _, ok := gone[p.Object]; ok || !refs.ValidID(p.Object) { // what has no name of ours is no checkpoint
			continue
		}
		o, err := log.Get(ctx, p.Object)
		switch {
		case err == nil:
			gone[p.Object] = o.State != refs.Committed
		case errors.Is(err, bucket.ErrNotExist):
			gone[p.Object] = true
		case !errors.Is(err, refs.ErrDamaged) && !errors.Is(err, refs.ErrNewer):
			return fmt.Errorf("store: %w", err)
		}
	}
	c.r.Problems = slices.DeleteFunc(c.r.Problems, func(p Problem) bool { return gone[p.Object] })
	return nil
}

func (c *checker) problem(p Problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.Problems = append(c.r.Problems, p)
}

// broken notes that something of a checkpoint is not as it should be.
func (c *checker) broken(id, checkpoint, key string, err error) {
	what := err.Error()
	if f := fault.As(err); f.Kind == fault.Damaged {
		what = f.Message
	}
	c.problem(Problem{Checkpoint: checkpoint, Object: id, Key: key, What: what})
}

// checkpoint looks at what only one checkpoint has, and notes what it needs. It
// fails if it cannot look.
func (c *checker) checkpoint(ctx context.Context, o *refs.Object) error {
	c.r.Checkpoints++
	m, err := c.v.manifest(o.ID, o.ID, o.Payload)
	if fault.Is(err, fault.Invalid) { // of another key or a newer release: nothing is wrong with it
		c.problem(Problem{Object: o.ID, Key: manifestName(o.ID), What: fault.As(err).Message, Harmless: true})
		return nil
	}
	if err != nil {
		c.broken(o.ID, "", manifestName(o.ID), err)
		return nil
	}
	im := &Image{id: o.ID, vault: c.v, manifest: m}
	if err := im.load(ctx); fault.Is(err, fault.Damaged) {
		c.broken(o.ID, m.Checkpoint, m.Table.Key, err)
		return nil
	} else if err != nil {
		return err
	}
	if _, err := im.Base(ctx); fault.Is(err, fault.Damaged) {
		c.problem(Problem{Checkpoint: m.Checkpoint, Object: o.ID, Key: m.Hashes.Key, What: fault.As(err).Message, Harmless: true})
	} else if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[o.ID] = m.Checkpoint
	for _, k := range append(slices.Clone(im.table.Packs), m.objects()...) {
		if k != m.Hot {
			c.needed[k] = append(c.needed[k], o.ID)
		}
		if !slices.Contains(o.Packs, k) {
			c.r.Problems = append(c.r.Problems, Problem{m.Checkpoint, o.ID, k, "it is needed, but not protected from garbage collection", false})
		}
	}
	for _, s := range im.table.Segments {
		pack, k := im.table.Packs[s.Pack], neededSegment{s.Offset, s.Size, s.Sum}
		if c.segments[pack] == nil {
			c.segments[pack] = map[neededSegment][]string{}
		}
		c.segments[pack][k] = append(c.segments[pack][k], o.ID)
	}
	for _, b := range []*Blob{m.Engine, m.Image} {
		for i := 0; b != nil && i < len(b.Parts); i++ {
			c.parts[b.Parts[i].Key] = b.Parts[i]
		}
	}
	return nil
}

// whole are the objects of checkpoints of which all was read and nothing is wrong
// that matters.
func (c *checker) whole() map[string]bool {
	out := map[string]bool{}
	for id := range c.names {
		out[id] = true
	}
	for key := range c.sealed {
		for _, id := range c.needed[key] {
			delete(out, id)
		}
	}
	for _, p := range c.r.Problems {
		if !p.Harmless {
			delete(out, p.Object)
		}
	}
	return out
}

// spoiled are the objects that are not sound.
func (c *checker) spoiled() (keys []string) {
	for key, sound := range c.sound {
		if !sound {
			keys = append(keys, key)
		}
	}
	return keys
}

// fine tells that there is nothing wrong with an object, or that it is gone.
func (c *checker) fine(key string) bool {
	_, there := c.sizes[key]
	return c.sound[key] || !there
}
