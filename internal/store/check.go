// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
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
		names: map[string]string{}, segments: map[string]map[neededSegment][]string{}, parts: map[string]Object{}, sound: map[string]bool{},
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
			c.checkpoint(ctx, o)
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
	if err := s.distrust(c.spoiled(), c.fine); err != nil { // before it is forgiven: others may come to need it
		return nil, err
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

// checkpoint looks at what only one checkpoint has, and notes what it needs.
func (c *checker) checkpoint(ctx context.Context, o *refs.Object) {
	c.r.Checkpoints++
	m, err := c.v.manifest(o.ID, o.ID, o.Payload)
	if fault.Is(err, fault.Invalid) { // of another key or a newer release: nothing is wrong with it
		c.problem(Problem{Object: o.ID, Key: manifestName(o.ID), What: fault.As(err).Message, Harmless: true})
		return
	}
	if err != nil {
		c.broken(o.ID, "", manifestName(o.ID), err)
		return
	}
	im := &Image{id: o.ID, vault: c.v, manifest: m}
	if err := im.load(ctx); err != nil {
		c.broken(o.ID, m.Checkpoint, m.Table.Key, err)
		return
	}
	if _, err := im.Base(ctx); err != nil {
		c.problem(Problem{Checkpoint: m.Checkpoint, Object: o.ID, Key: m.Hashes.Key, What: fault.As(err).Message, Harmless: true})
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
}

// packs looks at what checkpoints share.
func (c *checker) packs(ctx context.Context, readData bool, progress func(done, total int64)) error {
	var done, total int64
	for k := range c.needed {
		total += c.sizes[k]
	}
	c.r.Packs, c.r.Bytes = len(c.needed), total
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(runtime.GOMAXPROCS(0), c.v.parallel()))
	for k, ids := range c.needed {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := c.pack(ctx, k, ids, readData)
			if err != nil && !damage(err) {
				return err
			}
			if c.blame(ids, k, err, false); readData {
				c.judge(k, true)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if done += c.sizes[k]; progress != nil {
				progress(done, total)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), parent.Err())
}

// damage tells bytes that are wrong from a bucket that does not answer.
func damage(err error) bool {
	return errors.Is(err, format.ErrFormat) || errors.Is(err, bucket.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errSum)
}

var errSum = errors.New("does not match its hash")

// worded is an error in words for people in the place of a bucket's or the library's.
type worded struct {
	text string
	error
}

func (w worded) Error() string { return w.text }

// Unwrap implements the errors package's interface.
func (w worded) Unwrap() error { return w.error }

// inWords says what is wrong with something that was to be read.
func inWords(what string, err error) error {
	switch {
	case errors.Is(err, bucket.ErrNotExist):
		return worded{what + " is missing", err}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return worded{what + " is cut off", err}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// blame notes a problem of those that have it; nil is none.
func (c *checker) blame(ids []string, key string, err error, harmless bool) {
	if err != nil {
		c.judge(key, false)
	}
	for i := 0; err != nil && i < len(ids); i++ {
		c.problem(Problem{c.names[ids[i]], ids[i], key, err.Error(), harmless})
	}
}

// judge notes whether an object is sound; once it is not, it is not.
func (c *checker) judge(key string, sound bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before, ok := c.sound[key]; !ok || before {
		c.sound[key] = sound
	}
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

// pack checks an object that checkpoints need. It notes what is wrong with a part of
// it, for those who need that, and gives what is wrong with all of it.
func (c *checker) pack(ctx context.Context, key string, ids []string, readData bool) error {
	size, ok := c.sizes[key]
	if !ok {
		return worded{key + " is missing", bucket.ErrNotExist}
	}
	if part, ok := c.parts[key]; ok {
		return c.part(ctx, key, part, size, readData)
	}
	segments := c.segments[key]
	if len(segments) == 0 {
		return nil
	}
	sound := true
	for s, by := range segments {
		err := c.segment(ctx, key, s, size, readData)
		if err != nil && !damage(err) {
			return err
		}
		c.blame(by, key, err, false)
		sound = sound && err == nil
	}
	if !sound { // of its rest it says nothing more
		return nil
	}
	all, err := c.v.packIndex(ctx, key, size)
	if err != nil {
		err = inWords(key+": its index", err)
	} else if readData {
		err = c.rest(ctx, key, all, segments)
	}
	if err != nil && !damage(err) {
		return err
	}
	c.blame(ids, key, err, true)
	return nil
}

// part checks a part of a file that checkpoints rest on.
func (c *checker) part(ctx context.Context, key string, part Object, size int64, readData bool) error {
	if size != part.Size {
		return worded{fmt.Sprintf("%s has %d bytes instead of %d", key, size, part.Size), io.ErrUnexpectedEOF}
	}
	if !readData {
		return nil
	}
	b := make([]byte, part.Size)
	if err := c.v.b.ReadAt(ctx, key, b, 0); err != nil {
		return inWords(key, err)
	}
	if hexSum(b) != part.Blake3 {
		return fmt.Errorf("%s %w", key, errSum)
	}
	return nil
}

// segment checks one that checkpoints have pages of.
func (c *checker) segment(ctx context.Context, key string, s neededSegment, size int64, readData bool) error {
	if end := s.offset + int64(s.size); end > size {
		return worded{fmt.Sprintf("%s is cut off: it has %d bytes instead of at least %d", key, size, end), io.ErrUnexpectedEOF}
	}
	if !readData {
		return nil
	}
	b := make([]byte, s.size)
	if err := c.v.b.ReadAt(ctx, key, b, s.offset); err != nil {
		return inWords(key, err)
	}
	if blake3.Sum256(b) != s.sum {
		return fmt.Errorf("%s: the segment at %d %w", key, s.offset, errSum)
	}
	return nil
}

// rest reads what no checkpoint needs of a pack: its head and those of all its
// segments that are in no table. A later checkpoint might come to need them.
func (c *checker) rest(ctx context.Context, key string, all []format.PackedSegment, read map[neededSegment][]string) error {
	head := make([]byte, format.HeadSize)
	if err := c.v.b.ReadAt(ctx, key, head, 0); err != nil {
		return inWords(key, err)
	}
	if !bytes.Equal(head, format.BeginPack(nil)) {
		return fmt.Errorf("%s: its first bytes are not a pack's: %w", key, format.ErrFormat)
	}
	done := map[int64]bool{}
	for s := range read {
		done[s.offset] = true
	}
	at := int64(format.HeadSize)
	for _, s := range all {
		if !done[at] {
			b := make([]byte, s.Size)
			if err := c.v.b.ReadAt(ctx, key, b, at); err != nil {
				return inWords(key, err)
			}
			if blake3.Sum256(b) != s.Sum {
				return fmt.Errorf("%s: the segment at %d, which no checkpoint needs, %w", key, at, errSum)
			}
		}
		at += int64(s.Size)
	}
	return nil
}

// packIndex reads the index at the end of a pack.
func (v *vault) packIndex(ctx context.Context, key string, size int64) ([]format.PackedSegment, error) {
	if size < int64(format.FooterSize+format.HeadSize) {
		return nil, io.ErrUnexpectedEOF
	}
	tail := make([]byte, format.FooterSize)
	if err := v.b.ReadAt(ctx, key, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	at, n, sum, err := format.Footer(tail, size)
	if err != nil {
		return nil, err
	}
	if n > bucket.MaxObject { // a pack that was put by another way
		return nil, fmt.Errorf("an index of %d bytes (%w)", n, format.ErrFormat)
	}
	b := make([]byte, n)
	if err := v.b.ReadAt(ctx, key, b, at); err != nil {
		return nil, err
	}
	if blake3.Sum256(b) != sum {
		return nil, errSum
	}
	if b, err = v.open(b, key, indexPart); err != nil {
		return nil, err
	}
	return format.DecodeIndex(b, at)
}
