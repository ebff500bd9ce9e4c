// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/refs"
)

// quarantine is the prefix of what Repair takes out of the way.
const quarantine = "damaged/"

// Repair does what is safe: it moves checkpoints' objects that cannot be
// understood, which keep space from being freed, to damaged/; makes the index
// anew from the packs; and frees what nobody needs, unless it has moved anything:
// what that listed is there then until the next sweep. It gives a line for a person
// about each thing that it did. What it does not do is guess: a damaged
// checkpoint stays until it is deleted.
func (s *Store) Repair(ctx context.Context, progress func(done, total int64)) ([]string, error) {
	var done, broken []string
	err := s.refs.List(ctx, func(o *refs.Object, err error) error {
		if errors.Is(err, refs.ErrDamaged) { // a newer release understands ErrNewer
			broken = append(broken, o.ID)
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, id := range broken {
		line, err := s.setAside(ctx, id)
		if err != nil {
			return done, err
		}
		done = append(done, line)
	}
	n, err := s.Reindex(ctx, progress)
	if err != nil {
		return done, err
	}
	if n > 0 {
		done = append(done, fmt.Sprintf("the index of pages was missing %d packs: added", n))
	}
	if len(broken) > 0 {
		return append(done, "nothing was freed, so that what was moved can be put back while its data are there: oc store gc frees them now, the server within hours"), nil
	}
	r, err := s.Sweep(ctx, refs.Options{Audit: true})
	if errors.Is(err, refs.ErrNewer) { // it is for a newer release to do; the rest is done
		return append(done, fault.As(err).Message), nil
	}
	if err != nil {
		return done, err
	}
	if r.Packs > 0 {
		done = append(done, fmt.Sprintf("%d objects that no checkpoint needs: %d bytes freed", r.Packs, r.Bytes))
	}
	return done, nil
}

// setAside moves a damaged object, unless somebody may rely on what it listed.
func (s *Store) setAside(ctx context.Context, id string) (line string, err error) {
	key := manifestName(id)
	b, _, err := s.vault.b.Get(ctx, key)
	if err == nil {
		_, err = s.vault.b.Put(ctx, quarantine+key, b, bucket.Condition{})
	}
	switch {
	case err != nil:
	case refs.ValidID(id):
		err = s.refs.Drop(ctx, id)
	default:
		err = s.vault.b.Delete(ctx, key)
	}
	if errors.Is(err, refs.ErrState) || errors.Is(err, refs.ErrNewer) {
		return fmt.Sprintf("%s could not be understood, and may be in use: copied to %s%s, not moved; try again later", key, quarantine, key), nil
	}
	if err != nil {
		return "", fmt.Errorf("store: moving %s: %w", key, err)
	}
	return fmt.Sprintf("%s could not be understood: moved to %s%s", key, quarantine, key), nil
}

// Reindex adds the packs to the index that it does not know, but for those with
// damage, from the packs themselves, and gives their number.
func (s *Store) Reindex(ctx context.Context, progress func(done, total int64)) (added int, err error) {
	var missing []bucket.Object
	var done, total int64
	err = s.vault.list(ctx, refs.PackRoot, func(o bucket.Object) {
		if s.catalog.needs(o.Key) && !s.index.HasPack(o.Key) && !s.spoiled.has(o.Key) {
			missing = append(missing, o)
			total += o.Size
		}
	})
	if err != nil {
		return 0, err
	}
	for _, o := range missing {
		segments, err := s.vault.packIndex(ctx, o.Key, o.Size)
		switch {
		case err == nil:
			if err := s.indexPack(o.Key, segments); err != nil {
				return added, fmt.Errorf("store: %w", err)
			}
			added++
		case !damage(err) && !fault.Is(err, fault.Invalid): // of damage, and of missing keys, Check tells
			return added, fmt.Errorf("store: %w", err)
		}
		if done += o.Size; progress != nil {
			progress(done, total)
		}
	}
	return added, nil
}

// indexPack has the index learn a pack from the pack's own.
func (s *Store) indexPack(name string, segments []format.PackedSegment) error {
	t := format.Table{Packs: []string{name}}
	hashes := make([][]format.Hash, len(segments))
	at, first := int64(format.HeadSize), uint32(0)
	for i, p := range segments {
		t.Segments = append(t.Segments, format.Segment{
			Offset: at, Size: p.Size, First: first, Pages: uint16(len(p.Hashes)), Codec: p.Codec, Sum: p.Sum,
		})
		at, first = at+int64(p.Size), first+uint32(len(p.Hashes))
		hashes[i] = p.Hashes
	}
	return s.index.AddPack(name, t.Encode(), hashes)
}
