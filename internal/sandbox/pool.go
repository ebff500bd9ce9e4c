// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/meta"
)

// pool keeps engine processes prepared, which is most of the work of a create
// or spawn: for a create with the agent started in them, for a restore or spawn
// without. What is fixed when a process is prepared is its key; members are
// made after demand for their key, of which each that was wanted lately gets its
// share, and go when they get old. A member has a row (without a sandbox), a
// cgroup and a keeper entry like any generation.
type pool struct {
	s    *Service
	size int // members at most, of all keys together

	mu      sync.Mutex
	members map[poolKey][]*seed // the oldest first
	wanted  map[poolKey]demand
	filling bool      // there is a refiller, which will see what is wanted now
	taken   time.Time // when something was last asked for
	holders int       // of those for whom it is not refilled
	closed  bool
	hits    int
	misses  int
}

// poolKey is what is fixed when an engine process is prepared.
type poolKey struct {
	build string
	image string // hash
	shape engine.Shape
	agent bool // it has been started
}

// demand is what is known of the last demand for a key.
type demand struct {
	at  time.Time
	img Image
}

const (
	// poolDemand is how long a demand for a key is remembered.
	poolDemand = 10 * time.Minute
	// poolAge is how old a member may get.
	poolAge = 10 * time.Minute
	// poolQuiet is how long nothing must have been taken before refilling.
	poolQuiet = 200 * time.Millisecond
)

func newPool(s *Service, size int) *pool {
	return &pool{s: s, size: size, members: map[poolKey][]*seed{}, wanted: map[poolKey]demand{}}
}

// take gives a member of the key, or nil, and notes the demand. There are
// members of this server's own build only: what an earlier one captured is
// restored without the pool.
func (p *pool) take(key poolKey, img Image) *seed {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size == 0 || p.closed || key.build != p.s.cfg.Engine.Build() {
		return nil
	}
	p.wanted[key] = demand{at: p.s.cfg.Now(), img: img}
	p.taken = time.Now()
	defer p.refill()
	ms := p.members[key]
	for len(ms) > 0 {
		m := ms[0]
		ms = ms[1:]
		p.members[key] = ms
		if p.s.cfg.Engine.Alive(m.prepared) {
			p.hits++
			return m
		}
		p.drop(m)
	}
	p.misses++
	return nil
}

// refill makes members in the background, one at a time, each for the key that
// is then most in need. p.mu is held.
func (p *pool) refill() {
	if p.filling || p.closed {
		return
	}
	p.filling = true
	p.s.wg.Go(func() {
		for p.quiet() {
			key, img, ok := p.next()
			if !ok {
				return
			}
			began := p.s.cfg.Now()
			if m, err := p.make(p.s.ctx, key, img); err != nil {
				p.giveUp(key, began, err)
			} else {
				p.put(key, m)
				p.s.rekeep(p.s.ctx, m.gen.ID, m.host)
			}
		}
	})
}

// next gives the key that another member is to be made of, after it has let go
// one that is less in demand where there is no place. Where it gives none the
// refiller ends.
func (p *pool) next() (key poolKey, img Image, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && p.s.ctx.Err() == nil {
		key, ok = p.need()
	}
	p.filling = ok
	return key, p.wanted[key].img, ok
}

// need is next without the lock, which is held.
func (p *pool) need() (poolKey, bool) {
	p.forget(p.s.cfg.Now())
	keys := slices.SortedFunc(maps.Keys(p.wanted), func(a, b poolKey) int { return p.wanted[b].at.Compare(p.wanted[a].at) })
	keys = keys[:min(len(keys), p.size)]
	if len(keys) == 0 {
		return poolKey{}, false
	}
	key := slices.MinFunc(keys, func(a, b poolKey) int { return len(p.members[a]) - len(p.members[b]) })
	total := 0
	for _, ms := range p.members {
		total += len(ms)
	}
	if total < p.size {
		return key, true
	}
	// Places that do not divide evenly are left to whoever has them: replacing
	// there would go on for as long as the demand does.
	share := p.size / len(keys)
	if len(p.members[key]) >= share {
		return poolKey{}, false
	}
	over := func(k poolKey) int {
		if slices.Contains(keys, k) {
			return len(p.members[k]) - share
		}
		return len(p.members[k])
	}
	victim := slices.MaxFunc(slices.Collect(maps.Keys(p.members)), func(a, b poolKey) int {
		return cmp.Or(over(a)-over(b), p.wanted[b].at.Compare(p.wanted[a].at))
	})
	ms := p.members[victim]
	p.members[victim] = ms[1:]
	p.drop(ms[0])
	return key, true
}

// giveUp forgets the demand for a key of which no member could be made, so that
// it does not stand in the way of others; the next demand, which may have come since
// that began, tries again.
func (p *pool) giveUp(key poolKey, began time.Time, err error) {
	if p.s.ctx.Err() == nil {
		p.s.cfg.Log.Warn("preparing an engine for the pool", "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.wanted[key].at.After(began) {
		delete(p.wanted, key)
	}
}

// hold keeps the pool from being refilled, until what was taken has come up, for
// instance, which for many at once takes longer than a while.
func (p *pool) hold() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holders++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.holders--
	})
}

// Quiet keeps engine processes from being prepared for later creates and spawns
// until release is called, once or more often: each takes 0.1 s of CPU time, which a
// guest that is paused, or somebody who waits, would miss. Those that are being
// prepared are.
func (s *Service) Quiet() (release func()) { return s.pool.hold() }

// quiet waits until nobody has taken anything for a while and nobody holds it, so
// that refilling does not slow down what the pool is there to speed
// up. It is false when the service ends.
func (p *pool) quiet() bool {
	for {
		p.mu.Lock()
		wait := poolQuiet - time.Since(p.taken)
		if p.holders > 0 {
			wait = poolQuiet
		}
		p.mu.Unlock()
		if wait <= 0 {
			return true
		}
		select {
		case <-time.After(wait):
		case <-p.s.ctx.Done():
			return false
		}
	}
}

func (p *pool) make(ctx context.Context, key poolKey, img Image) (_ *seed, err error) {
	claim, err := p.s.cfg.Memory.Claim("a prepared engine", perStart)
	if err != nil {
		return nil, err
	}
	defer claim.Release()
	sd, err := p.s.sow(ctx, meta.Generation{
		State: meta.GenerationStarting, ImageHash: img.Hash, Timeline: meta.NewID("tl"),
		CPUs: key.shape.CPUs, MemoryMB: int(key.shape.MemoryBytes >> 20), DiskMB: int(key.shape.DiskBytes >> 20),
	}, engine.Spec{ImagePath: img.Path, Hostname: "sandbox", Shape: key.shape})
	if err != nil {
		return nil, err
	}
	how := p.s.cfg.Engine.Prepare
	if key.agent {
		how = p.s.cfg.Engine.Start
	}
	if sd.prepared, err = p.s.bringUp(ctx, how, sd); err != nil {
		sd.close()
		return nil, errors.Join(err, p.s.discard(ctx, sd.gen))
	}
	sd.born = p.s.cfg.Now()
	return sd, nil
}

func (p *pool) put(key poolKey, m *seed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.drop(m)
		return
	}
	p.members[key] = append(p.members[key], m)
}

// drop ends a member in the background.
func (p *pool) drop(m *seed) {
	m.close()
	p.s.wg.Go(func() {
		if err := p.s.discard(p.s.ctx, m.gen); err != nil {
			p.s.cfg.Log.Error("ending a pool member", "generation", m.gen.ID, "error", err)
		}
	})
}

// seeds are the members that there are.
func (p *pool) seeds() (all []*seed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ms := range p.members {
		all = append(all, ms...)
	}
	return all
}

// age ends members that are old, and forgets demand that is.
func (p *pool) age(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(now)
	for key, ms := range p.members {
		_, wanted := p.wanted[key]
		for len(ms) > 0 && (!wanted || now.Sub(ms[0].born) > poolAge) {
			p.drop(ms[0])
			ms = ms[1:]
		}
		p.members[key] = ms
		if len(ms) == 0 {
			delete(p.members, key)
		}
	}
}

// forget forgets demand that is old. p.mu is held.
func (p *pool) forget(now time.Time) {
	maps.DeleteFunc(p.wanted, func(_ poolKey, d demand) bool { return now.Sub(d.at) > poolDemand })
}

// close ends all members; take gives none any more.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, ms := range p.members {
		for _, m := range ms {
			p.drop(m)
		}
	}
	p.members = nil
}

// PoolStats tells how often a prepared engine was there, how often not, and
// how many are there now.
func (s *Service) PoolStats() (hits, misses, ready int) {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ms := range p.members {
		ready += len(ms)
	}
	return p.hits, p.misses, ready
}
