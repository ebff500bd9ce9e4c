// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/seal"
)

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
			switch {
			case fault.Is(err, fault.Invalid):
				c.locked(ids, k, err)
			case err != nil && !damage(err):
				return err
			default:
				if c.blame(ids, k, err, false); readData {
					c.judge(k, true)
				}
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
	return errors.Is(err, format.ErrFormat) || errors.Is(err, bucket.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errSum) ||
		errors.Is(err, seal.ErrDamaged)
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

// locked notes that something cannot be opened for want of a key. Nothing is wrong
// with it.
func (c *checker) locked(ids []string, key string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed[key] = true
	for _, id := range ids {
		what := fmt.Sprintf("%s is sealed with a key that this server does not have: %s", key, fault.As(err).Message)
		c.r.Problems = append(c.r.Problems, Problem{c.names[id], id, key, what, true})
	}
}

// pack checks an object that checkpoints need. It notes what is wrong with a part of
// it, for those who need that, and gives what is wrong with all of it. It is Invalid
// where a key is missing.
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
	if fault.Is(err, fault.Invalid) {
		return err
	}
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
	if _, err := c.v.open(b, key, 0); err != nil {
		return inWords(key, err)
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
