// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
)

var errFault = errors.New("injected")

// faulty is a memory whose requests fail before or after they took effect, are
// repeated, or land later.
type faulty struct {
	mu   sync.Mutex
	m    *memory
	rng  *rand.Rand
	rate float64
	late []func()
}

// call does something under the lock, with or without a fault.
func (f *faulty) call(do func(), late bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.late) > 0 && f.rng.Float64() < 0.3 {
		f.late[0]()
		f.late = f.late[1:]
	}
	if f.rng.Float64() >= f.rate {
		do()
		return nil
	}
	switch f.rng.IntN(4) {
	case 0:
		return errFault
	case 1:
		do()
		return errFault
	case 2:
		if late {
			f.late = append(f.late, do)
		}
		return errFault
	}
	do() // a library that repeats what it had no answer to
	do()
	return nil
}

func (f *faulty) Put(ctx context.Context, key string, body []byte, c bucket.Condition) (etag string, err error) {
	body = bytes.Clone(body)
	var e string
	var r error
	if ferr := f.call(func() { e, r = f.m.Put(ctx, key, body, c) }, true); ferr != nil {
		return "", ferr
	}
	return e, r
}

func (f *faulty) Get(ctx context.Context, key string) (body []byte, etag string, err error) {
	if ferr := f.call(func() { body, etag, err = f.m.Get(ctx, key) }, false); ferr != nil {
		return nil, "", ferr
	}
	return body, etag, err
}

func (f *faulty) ReadAt(ctx context.Context, key string, p []byte, off int64) (err error) {
	if ferr := f.call(func() { err = f.m.ReadAt(ctx, key, p, off) }, false); ferr != nil {
		return ferr
	}
	return err
}

func (f *faulty) List(ctx context.Context, prefix, after string, limit int) (page []bucket.Object, more bool, err error) {
	if ferr := f.call(func() { page, more, err = f.m.List(ctx, prefix, after, limit) }, false); ferr != nil {
		return nil, false, ferr
	}
	return page, more, err
}

func (f *faulty) Delete(ctx context.Context, key string) error {
	return f.call(func() { _ = f.m.Delete(ctx, key) }, true)
}

// model is what a user of the package believes.
type model struct {
	t       *testing.T
	f       *faulty
	clock   clock
	rng     *rand.Rand
	logs    []*Log // the last one's clock is hours ahead
	writers []*Writer
	packs   map[*Writer][]string
	leases  []*Lease
	reading map[*Lease][]string
	ids     []string
	state   map[string]string // of ids: committed, failed, unknown, deleted
	want    map[string][]string
}

// TestModel does one random thing after another, over a bucket that fails, and
// holds the bucket against what it was told.
func TestModel(t *testing.T) {
	t.Parallel()
	seed, rounds := seedOf(t), 200
	if long {
		rounds = 5000
	}
	synctest.Test(t, func(t *testing.T) {
		for i := range rounds {
			m := newModel(t, seed, uint64(i))
			for range 80 {
				m.step()
			}
			m.finish()
			if t.Failed() {
				t.Fatalf("OC_TEST_SEED=%d, round %d", seed, i)
			}
		}
	})
}

func newModel(t *testing.T, seed, round uint64) *model {
	rng := rand.New(rand.NewPCG(seed, round))
	m := &model{t: t, rng: rng, packs: map[*Writer][]string{}, reading: map[*Lease][]string{}, state: map[string]string{}, want: map[string][]string{}}
	m.f = &faulty{m: newMemory(rng.IntN(4)), rng: rand.New(rand.NewPCG(seed, ^round)), rate: []float64{0, 0.05, 0.2}[rng.IntN(3)]}
	for i := range 3 {
		skew := time.Duration(i/2) * 10 * time.Hour
		l := New(m.f, Config{TTL: testTTL, Roots: []string{"images/"}, Clock: func() time.Time { return time.Unix(1e9, 0).Add(skew + m.clock.since()) }})
		l.pause = m.pause
		m.logs = append(m.logs, l)
	}
	return m
}

// pause waits for the clock, which whoever tries again moves himself.
func (m *model) pause(ctx context.Context, d time.Duration) bool {
	if d <= time.Second {
		m.clock.advance(d)
		return ctx.Err() == nil
	}
	return m.clock.pause(ctx, d)
}

func (m *model) step() {
	ctx := m.t.Context()
	l := m.logs[m.rng.IntN(2)]
	switch m.rng.IntN(12) {
	case 0, 1:
		if len(m.writers) < 2 {
			m.begin(ctx, l)
		}
	case 2, 3, 4:
		if len(m.writers) > 0 {
			m.put(ctx, m.writers[m.rng.IntN(len(m.writers))])
		}
	case 5, 6:
		if len(m.writers) > 0 {
			m.end(ctx, m.rng.IntN(len(m.writers)))
		}
	case 7:
		if len(m.ids) > 0 {
			id := m.ids[m.rng.IntN(len(m.ids))]
			if m.state[id] == "committed" {
				m.state[id] = "deleted" // or not yet
			}
			_ = l.Delete(ctx, id)
		}
	case 8:
		m.sweep(ctx, m.logs[m.rng.IntN(len(m.logs))])
	case 9:
		if len(m.ids) > 0 {
			id := m.ids[m.rng.IntN(len(m.ids))]
			if s, o, err := l.Read(ctx, id); err == nil {
				m.leases = append(m.leases, s)
				m.reading[s] = o.Packs
			}
		}
	case 10:
		if len(m.leases) > 0 {
			s := m.leases[0]
			m.leases = m.leases[1:]
			delete(m.reading, s)
			_ = s.Close(ctx)
		}
	case 11:
		m.clock.advance(testTTL / 2)
	}
	synctest.Wait()
	m.check()
}

func (m *model) begin(ctx context.Context, l *Log) {
	var pins []string
	for _, id := range m.ids {
		if m.rng.IntN(3) == 0 {
			pins = append(pins, id)
		}
	}
	w, err := l.Begin(ctx, pins, func(id string) []string { return []string{"images/x/" + id + "-0"} })
	if err != nil {
		return
	}
	m.writers = append(m.writers, w)
	for _, b := range w.Bases() {
		for _, p := range b.Packs {
			if m.rng.IntN(2) == 0 && !slices.Contains(m.packs[w], p) {
				m.packs[w] = append(m.packs[w], p)
			}
		}
	}
}

func (m *model) put(ctx context.Context, w *Writer) {
	key, err := w.NewPack()
	if m.rng.IntN(4) == 0 {
		key = "images/x/" + w.ID() + "-0"
	}
	if err == nil {
		err = w.Put(ctx, key, []byte(key))
	}
	if err == nil {
		m.packs[w] = append(m.packs[w], key)
	}
}

// end commits, aborts, or crashes.
func (m *model) end(ctx context.Context, i int) {
	w := m.writers[i]
	m.writers = slices.Delete(m.writers, i, i+1)
	switch m.rng.IntN(6) {
	case 0:
		_ = w.Abort(ctx)
		m.state[w.ID()] = "failed"
	case 1:
		w.end()
		m.state[w.ID()] = "failed"
	default:
		err := w.Commit(ctx, m.packs[w], []byte(w.ID()))
		m.want[w.ID()] = m.packs[w]
		switch {
		case err == nil:
			m.state[w.ID()] = "committed"
		case errors.Is(err, ErrUnknown):
			m.state[w.ID()] = "unknown"
		default:
			m.state[w.ID()] = "failed"
		}
	}
	m.ids = append(m.ids, w.ID())
}

func (m *model) sweep(ctx context.Context, l *Log) {
	opt := Options{Audit: m.rng.IntN(2) == 0, DryRun: m.rng.IntN(4) == 0}
	before := len(m.f.m.objects)
	_, _ = l.Sweep(ctx, opt)
	if opt.DryRun && m.f.rate == 0 && len(m.f.m.objects) != before {
		m.t.Error("a dry run has changed something")
	}
}

// check holds the bucket against the model.
func (m *model) check() {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	objects := map[string]*Object{}
	for _, k := range m.f.m.keys(Prefix) {
		o, err := decode(k[len(Prefix):], m.f.m.objects[k].body)
		if err != nil {
			m.t.Fatal(err)
		}
		objects[o.ID] = o
		if o.State == Committed {
			m.exist("checkpoint "+o.ID, o.Packs)
		}
	}
	for id, state := range m.state {
		o := objects[id]
		is := o != nil && o.State == Committed
		if state == "committed" && (!is || !slices.Equal(o.Packs, m.want[id]) || string(o.Payload) != id) {
			m.t.Errorf("%s was committed and is %+v", id, o)
		}
		if state == "failed" && is {
			m.t.Errorf("%s had failed and is committed", id)
		}
	}
	for s, packs := range m.reading {
		if o := objects[s.c.obj.ID]; o != nil && o.State == Reading {
			m.exist("lease "+o.ID, packs)
		}
	}
}

func (m *model) exist(who string, packs []string) {
	for _, p := range packs {
		if _, ok := m.f.m.objects[p]; !ok {
			m.t.Errorf("%s misses %s", who, p)
		}
	}
}

// finish lets everything crash and the claims expire; two audits must leave
// what is committed and nothing else.
func (m *model) finish() {
	ctx := m.t.Context()
	for _, w := range m.writers {
		w.end()
	}
	for _, s := range m.leases {
		s.c.halt()
	}
	m.f.mu.Lock()
	m.f.rate = 0
	for _, do := range m.f.late {
		do()
	}
	m.f.late = nil
	m.f.mu.Unlock()
	m.clock.advance(20 * time.Hour)
	for range 2 {
		if _, err := m.logs[0].Sweep(ctx, Options{Audit: true}); err != nil {
			m.t.Error(err)
		}
	}
	m.reading = nil
	m.check()
	want := map[string]bool{}
	err := m.logs[1].List(ctx, func(o *Object, err error) error {
		if err != nil || o.State != Committed {
			return fmt.Errorf("left: %+v, %w", o, err)
		}
		want[Prefix+o.ID] = true
		for _, p := range o.Packs {
			want[p] = true
		}
		return nil
	})
	if err != nil {
		m.t.Error(err)
	}
	for _, k := range m.f.m.keys("") {
		if !want[k] {
			m.t.Errorf("%s is never freed", k)
		}
	}
}
