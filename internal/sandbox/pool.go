// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/meta"
)

// pool keeps engine processes prepared, which is most of the work of a create
// or spawn: for a create with the agent started in them, for a restore or spawn
// without. What is fixed when a process is prepared is its key; members are
// made after demand for their key, and go when they get old. A member has a
// row (without a sandbox), a cgroup and a keeper entry like any generation.
type pool struct {
	s    *Service
	size int // members at most, of all keys together

	mu      sync.Mutex
	members map[poolKey][]*seed // the oldest first
	wanted  map[poolKey]time.Time
	filling bool
	taken   time.Time // when something was last asked for
	pending int       // restores that are being brought up
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

const (
	// poolDemand is how long a demand for a key is remembered.
	poolDemand = 10 * time.Minute
	// poolAge is how old a member may get.
	poolAge = 10 * time.Minute
	// poolQuiet is how long nothing must have been taken before refilling.
	poolQuiet = 200 * time.Millisecond
)

func newPool(s *Service, size int) *pool {
	return &pool{s: s, size: size, members: map[poolKey][]*seed{}, wanted: map[poolKey]time.Time{}}
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
	p.wanted[key] = p.s.cfg.Now()
	p.taken = time.Now()
	defer p.refill(key, img)
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

// refill makes members of a key in the background, one at a time. p.mu is held.
func (p *pool) refill(key poolKey, img Image) {
	if p.filling || p.closed {
		return
	}
	p.filling = true
	p.s.wg.Go(func() {
		defer func() {
			p.mu.Lock()
			p.filling = false
			p.mu.Unlock()
		}()
		for p.quiet() && p.room(key) {
			m, err := p.make(p.s.ctx, key, img)
			if err != nil {
				if p.s.ctx.Err() == nil {
					p.s.cfg.Log.Warn("preparing an engine for the pool", "error", err)
				}
				return
			}
			p.put(key, m)
		}
	})
}

// hold keeps the pool from being refilled until what was taken has come up,
// which for many at once takes longer than a while.
func (p *pool) hold() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pending--
	}
}

// quiet waits until nobody has taken anything for a while and nothing is being
// restored, so that refilling does not slow down what the pool is there to speed
// up. It is false when the service ends.
func (p *pool) quiet() bool {
	for {
		p.mu.Lock()
		wait := poolQuiet - time.Since(p.taken)
		if p.pending > 0 {
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

// room tells whether another member of the key may be made, after it has let
// go a member of a key that is less in demand.
func (p *pool) room(key poolKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.s.ctx.Err() != nil || len(p.members[key]) >= p.size {
		return false
	}
	total, victim := 0, key
	for k, ms := range p.members {
		total += len(ms)
		if len(ms) > 0 && k != key && (victim == key || p.wanted[k].Before(p.wanted[victim])) {
			victim = k
		}
	}
	if total < p.size {
		return true
	}
	if victim == key {
		return false
	}
	ms := p.members[victim]
	p.members[victim] = ms[1:]
	p.drop(ms[0])
	return true
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
	bringUp := p.s.cfg.Engine.Prepare
	if key.agent {
		bringUp = p.s.cfg.Engine.Start
	}
	if sd.prepared, err = bringUp(ctx, sd.spec, sd.guest); err != nil {
		sd.close()
		return nil, errors.Join(err, p.s.discard(ctx, sd.gen))
	}
	sd.started()
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

// age ends members that are old, and forgets demand that is.
func (p *pool) age(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, ms := range p.members {
		for len(ms) > 0 && (now.Sub(ms[0].born) > poolAge || now.Sub(p.wanted[key]) > poolDemand) {
			p.drop(ms[0])
			ms = ms[1:]
		}
		p.members[key] = ms
		if len(ms) == 0 {
			delete(p.members, key)
		}
	}
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
