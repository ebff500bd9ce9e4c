// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencomputer/oc/internal/bucket"
)

// Limits of a sweep.
const (
	cacheBytes = 64 << 20 // of keys kept between sweeps
	maxMissing = 1000     // times in a row that an object is listed and not there
)

// Options of a sweep.
type Options struct {
	DryRun bool // change nothing, tell what would be
	// Audit looks at all packs there are, not only at those of dead objects: it
	// finds what was written when nobody referred to it any more.
	Audit    bool
	Progress func(Report) // if not nil, called after each step, by the caller's goroutine
}

// Report tells what a sweep has done, or would do.
type Report struct {
	Objects int   // looked at
	Revoked int   // claims that had expired
	Packs   int   // deleted
	Bytes   int64 // in them
	Total   int64 // bytes in all that are to be deleted; 0 until that is decided
	Removed int   // objects removed
	Pending int   // objects that are to go when nobody reads or writes what they pin any more
	Unknown int   // found by an audit and left alone: not named as packs are
}

// cached is what step 2 needs of a committed object, which never changes.
type cached struct {
	etag string
	obj  *Object
}

// sweep is one run.
type sweep struct {
	l      *Log
	opt    Options
	report Report

	dead   map[string]*Object // X: found deleted or revoked in step 1
	cand   map[string]int64   // candidates and their sizes; -1: not known to exist
	alive  map[string]bool    // ids seen being written
	pinned map[string]bool    // ids
	held   map[string]bool    // candidates that only what is dead itself keeps

	cache map[string]cached // the next one
	room  int
}

// Sweep deletes the packs that nothing needs and the objects that are done. It
// may run anywhere at any time, be killed, or be late by days. After an error
// some of the work is done, and the next sweep does the rest. ErrDamaged and
// ErrNewer name an object that has to be dealt with first; nothing was deleted.
func (l *Log) Sweep(ctx context.Context, opt Options) (Report, error) {
	s := &sweep{l: l, opt: opt, dead: map[string]*Object{}, cand: map[string]int64{},
		alive: map[string]bool{}, pinned: map[string]bool{}, held: map[string]bool{}, cache: map[string]cached{}, room: l.room}
	if e, ok := l.b.(bucket.Excluder); ok && !opt.DryRun && !l.faults.unlocked {
		release, err := e.Exclude(ctx)
		if err != nil {
			return s.report, fmt.Errorf("refs: sweep: %w", err)
		}
		defer release()
	}
	steps := []func(context.Context) error{s.first, s.audit, s.second, s.deletePacks, s.removeObjects}
	if l.faults.auditLate {
		steps[1], steps[2] = steps[2], steps[1]
	}
	if l.faults.objectsFirst {
		steps[3], steps[4] = steps[4], steps[3]
	}
	for i, step := range steps {
		if i == 3 {
			s.keepLive()
		}
		if err := step(ctx); err != nil {
			return s.report, fmt.Errorf("refs: sweep: %w", err)
		}
	}
	s.report.Pending = len(s.dead) - s.report.Removed
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cache = s.cache
	return s.report, nil
}

func (s *sweep) progress() {
	if s.opt.Progress != nil {
		s.opt.Progress(s.report)
	}
}

// read gives an object of a list. What is committed and has the listed version
// is as it was when it was read before.
func (s *sweep) read(ctx context.Context, e bucket.Object) (*Object, string, error) {
	s.l.mu.Lock()
	c, ok := s.l.cache[e.Key]
	s.l.mu.Unlock()
	if !ok || c.etag != e.ETag {
		if c, ok = s.cache[e.Key]; !ok || c.etag != e.ETag {
			body, etag, err := s.l.b.Get(ctx, e.Key)
			if err != nil {
				return nil, "", fmt.Errorf("get %s: %w", e.Key, err)
			}
			o, err := decode(strings.TrimPrefix(e.Key, Prefix), body)
			if err != nil {
				return nil, "", err
			}
			o.Payload = nil
			c = cached{etag, o}
		}
	}
	s.keep(e.Key, c)
	return c.obj, c.etag, nil
}

// keep remembers a committed object for the next sweep, while there is room.
func (s *sweep) keep(key string, c cached) {
	if _, ok := s.cache[key]; ok || c.obj.State != Committed {
		return
	}
	size := 256
	for _, p := range c.obj.Packs {
		size += len(p) + 16
	}
	if size <= s.room {
		s.room -= size
		s.cache[key] = c
	}
}

// first is step 1: it finds the dead, revokes what has expired, and collects
// the candidates.
func (s *sweep) first(ctx context.Context) error {
	err := s.l.walk(ctx, Prefix, func(e bucket.Object) error {
		o, etag, err := s.read(ctx, e)
		if errors.Is(err, bucket.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.l.faults.oneList {
			return nil
		}
		s.report.Objects++
		defer s.progress()
		if (o.State == Writing || o.State == Reading) && s.l.expired(o) {
			return s.revoke(ctx, o, etag)
		}
		if o.State == Deleting || o.State == Revoked {
			s.dead[o.ID] = o
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(s.dead)) {
		if err := s.offer(ctx, s.dead[id]); err != nil {
			return err
		}
	}
	return nil
}

// revoke makes an expired claim a dead object, if its holder has not renewed it.
// If it is not known to be revoked it lives.
func (s *sweep) revoke(ctx context.Context, o *Object, etag string) error {
	s.report.Revoked++
	if s.opt.DryRun || s.l.faults.expiredDead {
		if s.l.faults.expiredDead {
			s.dead[o.ID] = o
		}
		return nil
	}
	if err := s.l.revoke(ctx, o, etag); err != nil {
		s.report.Revoked--
		return ctx.Err()
	}
	s.dead[o.ID] = o // its packs are the declared ones, as the revoked object has them
	return nil
}

// offer makes all packs of a dead object candidates.
func (s *sweep) offer(ctx context.Context, o *Object) error {
	for _, p := range o.Packs {
		if owner, _ := Owner(p); s.l.faults.ownOffered && owner != o.ID {
			continue
		}
		if _, ok := s.cand[p]; !ok {
			s.cand[p] = -1
		}
	}
	if s.l.faults.prefixUnseen {
		return nil
	}
	return s.collect(ctx, PackRoot+o.ID+"/")
}

// collect makes all packs below a prefix candidates.
func (s *sweep) collect(ctx context.Context, prefix string) error {
	return s.l.walk(ctx, prefix, func(e bucket.Object) error {
		if _, ok := Owner(e.Key); !ok {
			s.report.Unknown++
			return nil
		}
		s.cand[e.Key] = e.Size
		return nil
	})
}

// audit makes all packs candidates. It ends before step 2 begins, so that whoever
// wrote a pack it has seen is seen there.
func (s *sweep) audit(ctx context.Context) error {
	if !s.opt.Audit {
		return nil
	}
	for _, root := range slices.Compact(slices.Sorted(slices.Values(append([]string{PackRoot}, s.l.cfg.Roots...)))) {
		if err := s.collect(ctx, root); err != nil {
			return err
		}
	}
	return nil
}

// second is step 2: a full list in ascending order that reads every object which
// was not dead in step 1. If a listed one is gone, what referred to it may have
// been handed on to a later id that the page does not have: the list is taken
// again from there.
func (s *sweep) second(ctx context.Context) error {
	after, missing := "", 0
	for {
		page, more, err := s.l.page(ctx, Prefix, after)
		if err != nil {
			return err
		}
		again := false
		for _, e := range page {
			if s.dead[strings.TrimPrefix(e.Key, Prefix)] == nil {
				o, _, err := s.read(ctx, e)
				if again = errors.Is(err, bucket.ErrNotExist) && !s.l.faults.skipMissing; again {
					break
				}
				if err != nil && !errors.Is(err, bucket.ErrNotExist) {
					return err
				}
				if err == nil {
					if err := s.count(ctx, o); err != nil {
						return err
					}
				}
			}
			after, missing = e.Key, 0
		}
		if again {
			if missing++; missing > maxMissing {
				return fmt.Errorf("list %s: shows an object after %q that is not there", Prefix, after)
			}
			continue
		}
		if !more {
			return nil
		}
	}
}

// count takes from the candidates what an object outside of X needs.
func (s *sweep) count(ctx context.Context, o *Object) error {
	f := s.l.faults
	switch o.State {
	case Deleting, Revoked:
		if f.oneList {
			s.dead[o.ID] = o
			return s.offer(ctx, o)
		}
		if o.State == Deleting && !f.deletingDead {
			s.hold(o, false) // somebody who was seen before may have got its packs from it
		}
	case Committed:
		s.live(o, f.ownLive)
	case Writing:
		s.alive[o.ID] = true
		for _, p := range o.Pins {
			s.pinned[p] = true
		}
	case Reading:
		s.pinned[o.Pins[0]] = true
	}
	return nil
}

// live takes an object's packs from the candidates.
func (s *sweep) live(o *Object, own bool) {
	for _, p := range o.Packs {
		if owner, _ := Owner(p); !own || owner == o.ID {
			delete(s.cand, p)
		}
	}
}

// hold keeps an object's packs, but leaves them to the dead objects that offer
// them: what holds them may be removed by another sweep at the same time, which
// relies on those.
func (s *sweep) hold(o *Object, own bool) {
	for _, p := range o.Packs {
		if owner, _ := Owner(p); !own || owner == o.ID {
			s.held[p] = true
		}
	}
}

// keepLive takes from the candidates the packs of writers, those of the dead that
// somebody pins, and those of what was deleted since step 1.
func (s *sweep) keepLive() {
	f := s.l.faults
	for id, o := range s.dead {
		if s.pinned[id] && !f.pinsIgnored {
			s.hold(o, f.pinsOwn)
		}
	}
	maps.DeleteFunc(s.held, func(key string, _ bool) bool {
		_, ok := s.cand[key]
		delete(s.cand, key)
		return !ok // a committed object needs it, and offers it when it is deleted
	})
	maps.DeleteFunc(s.cand, func(key string, _ int64) bool {
		owner, _ := Owner(key)
		return s.alive[owner] && !f.writingDead
	})
}

// deletePacks is the first half of step 3.
func (s *sweep) deletePacks(ctx context.Context) error {
	for _, size := range s.cand {
		s.report.Total += max(size, 0)
	}
	for _, key := range slices.Sorted(maps.Keys(s.cand)) {
		size := s.cand[key]
		if size < 0 {
			page, _, err := s.l.b.List(ctx, key, "", 1)
			if err != nil {
				return fmt.Errorf("list %s: %w", key, err)
			}
			if len(page) == 0 || page[0].Key != key {
				continue // gone already
			}
			size = page[0].Size
			s.report.Total += size
		}
		if !s.opt.DryRun {
			if err := s.l.b.Delete(ctx, key); err != nil {
				return fmt.Errorf("delete %s: %w", key, err)
			}
		}
		s.report.Packs++
		s.report.Bytes += size
		s.progress()
	}
	return nil
}

// removeObjects is the second: an object goes after its packs, or nobody would
// find them; and not while its packs are there for something that is dead itself.
func (s *sweep) removeObjects(ctx context.Context) error {
	for _, id := range slices.Sorted(maps.Keys(s.dead)) {
		if s.pinned[id] && !s.l.faults.pinnedGoes {
			continue
		}
		if slices.ContainsFunc(s.dead[id].Packs, func(p string) bool { return s.held[p] }) && !s.l.faults.holderGoes {
			continue
		}
		if !s.opt.DryRun {
			if err := s.l.b.Delete(ctx, Prefix+id); err != nil {
				return fmt.Errorf("delete %s: %w", id, err)
			}
		}
		s.report.Removed++
		s.progress()
	}
	return nil
}
