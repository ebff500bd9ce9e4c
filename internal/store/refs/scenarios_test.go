// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"context"
	"fmt"
	"io"
	"time"
)

// The bases of all scenarios.
const (
	idA   = "0000000000000000100-aaaaaaaaaaaaaaaa"
	idB   = "0000000000000000200-bbbbbbbbbbbbbbbb"
	idR   = "0000000000000000300-cccccccccccccccc"
	packA = PackRoot + idA + "/a"
	packB = PackRoot + idB + "/b"
)

// bases makes a bucket: A, a and d are the first base committed, gone and
// deleted; B the second, which lists the first's pack too, and b the same deleted;
// c lists that pack alone, and r is a lease on the second.
func bases(init string, page int) *memory {
	m := newMemory(page)
	l := New(m, Config{Random: stream(200)})
	put := func(o *Object) {
		o.token = "0123456789abcdef"
		body, err := l.encode(o)
		if err != nil {
			panic(err)
		}
		m.set(Prefix+o.ID, body)
		for _, p := range o.Packs {
			m.set(p, []byte(p))
		}
	}
	for _, c := range init {
		switch c {
		case 'A':
			put(&Object{ID: idA, State: Committed, Packs: []string{packA}})
		case 'd':
			put(&Object{ID: idA, State: Deleting, Packs: []string{packA}})
		case 'b':
			put(&Object{ID: idB, State: Deleting, Packs: []string{packA, packB}})
		case 'c':
			put(&Object{ID: idB, State: Committed, Packs: []string{packA}})
		case 'r':
			put(&Object{ID: idR, State: Reading, Pins: []string{idB}, Expiry: time.Unix(3600, 0)})
		case 'B':
			put(&Object{ID: idB, State: Committed, Packs: []string{packA, packB}})
		}
	}
	return m
}

// Clocks: writers start after the bases, in the order of their numbers.
const (
	early = 50 * time.Nanosecond
	ahead = 100 * time.Hour // whoever has this clock finds every claim expired
)

func after(n int) time.Duration { return 1000*time.Nanosecond + time.Duration(n)*100 }

// writer begins with pins, writes packs, refers to all of its bases' packs and
// commits.
func writer(name string, clock time.Duration, packs int, pins ...string) actor {
	return writerOf(name, clock, packs, false, false, pins...)
}

func writerOf(name string, clock time.Duration, packs int, blob, abort bool, pins ...string) actor {
	return actor{name, clock, func(ctx context.Context, a *act) {
		w, err := a.log.Begin(ctx, pins, func(id string) []string {
			if blob {
				return []string{"images/x/" + id + "-0"}
			}
			return nil
		})
		if err != nil {
			return
		}
		defer func() { _ = w.Abort(ctx) }()
		all, err := a.putAll(ctx, w, packs, blob)
		if err != nil || abort {
			return
		}
		err = w.Commit(ctx, all, []byte(name))
		a.r.mu.Lock()
		defer a.r.mu.Unlock()
		if !a.r.ended {
			a.r.acks[ack{w.ID(), name}] = err
		}
	}}
}

// putAll writes the packs and gives them and those of the bases.
func (a *act) putAll(ctx context.Context, w *Writer, packs int, blob bool) (all []string, err error) {
	seen := map[string]bool{}
	for _, b := range w.Bases() {
		for _, p := range b.Packs {
			if !seen[p] {
				all = append(all, p)
			}
			seen[p] = true
		}
	}
	for i := range packs {
		key := "images/x/" + w.ID() + "-0"
		for try := 0; ; try++ { // no answer: another name
			if !blob || i > 0 {
				if key, err = w.NewPack(); err != nil {
					return nil, err
				}
			}
			if err = w.Put(ctx, key, []byte(key)); err == nil {
				break
			}
			if try > 0 || blob {
				return nil, err
			}
		}
		all = append(all, key)
	}
	return all, nil
}

func sweeper(name string, clock time.Duration, audit ...bool) actor {
	return actor{name, clock, func(ctx context.Context, a *act) {
		for _, audit := range audit {
			if _, err := a.log.Sweep(ctx, Options{Audit: audit}); err != nil {
				return
			}
		}
	}}
}

// deleter deletes objects, or revokes them if its clock is ahead.
func deleter(clock time.Duration, ids ...string) actor {
	return actor{"deleter", clock, func(ctx context.Context, a *act) {
		for _, id := range ids {
			a.r.mu.Lock()
			a.r.deletes[id] = true
			a.r.mu.Unlock()
			_ = a.log.Delete(ctx, id)
		}
	}}
}

// revoker finds writers expired, and leaves alone what is committed.
func revoker(id string) actor {
	return actor{"revoker", ahead, func(ctx context.Context, a *act) {
		o, etag, err := a.log.get(ctx, id)
		if err == nil && (o.State == Writing || o.State == Reading) {
			_ = a.log.revoke(ctx, o, etag)
		}
	}}
}

// reader reads a pack of a checkpoint under a lease.
func reader(name string, clock time.Duration, id string) actor {
	return actor{name, clock, func(ctx context.Context, a *act) {
		s, o, err := a.log.Read(ctx, id)
		if err != nil {
			return
		}
		a.r.mu.Lock()
		a.r.leases[s.c.obj.ID] = o.Packs
		a.r.mu.Unlock()
		var b [1]byte
		_ = a.log.b.ReadAt(ctx, o.Packs[0], b[:], 0)
		_ = s.Close(ctx)
	}}
}

// closer gives back a lease.
func closer(id string) actor {
	return actor{"closer", after(0), func(ctx context.Context, a *act) { _ = a.log.b.Delete(ctx, Prefix+id) }}
}

// sameID makes two actors choose one id, with different tokens.
type sameID struct {
	n     int
	other io.Reader
}

func (s *sameID) Read(p []byte) (int, error) {
	if s.n++; s.n == 1 {
		return copy(p, "same id!"), nil
	}
	return s.other.Read(p)
}

func withSameID(i int, a actor) actor {
	do := a.do
	a.do = func(ctx context.Context, x *act) {
		x.log.cfg.Random = &sameID{other: stream(i + 50)}
		do(ctx, x)
	}
	return a
}

// scenarios are small enough to go through nearly every order, and together
// have every rule at work.
func scenarios() []*scenario {
	w := func(packs int, pins ...string) actor { return writer("W1", after(1), packs, pins...) }
	none, plain2, audit := []bool{false}, []bool{false, false}, []bool{true}
	sw := func(n string, audits ...bool) actor { return sweeper(n, after(0), audits...) }
	id := func(i int, a actor, pins ...string) string {
		return idOf(&scenario{actors: append(make([]actor, i), a)}, i, pins...)
	}
	w1 := id(0, w(1, idB), idB)
	var all []*scenario
	for _, page := range []int{1, 2, 0} {
		all = append(all, &scenario{name: fmt.Sprintf("writer, page %d", page), init: "AB", page: page, cold: true, plain: true,
			actors: []actor{w(1, idB), deleter(after(0), idB), sw("S1", plain2...), sw("S2", none...)}, bound: 2})
	}
	late := writer("W1", early, 1, idB)
	return append(all,
		&scenario{name: "handed on", init: "dB", page: 2, cold: true, plain: true,
			actors: []actor{w(1, idB), deleter(after(0), idB), sw("S1", none...), sw("S2", plain2...)}, bound: 2},
		&scenario{name: "clock behind", init: "dB", page: 1, plain: true,
			actors: []actor{late, deleter(after(0), idB), sw("S1", none...), sw("S2", none...)}, bound: 2},
		&scenario{name: "two writers", init: "AB", page: 1,
			actors: []actor{w(1, idB), writer("W2", after(2), 1, w1, idA), deleter(after(0), idA, idB, w1), sw("S1", none...), sw("S2", audit...)}, bound: 1},
		&scenario{name: "audit", init: "AB", page: 1,
			actors: []actor{w(2, idB), deleter(after(0), idA), sw("S1", audit...)}, bound: 3},
		&scenario{name: "revoked writer", init: "A", page: 1,
			actors: []actor{w(1, idA), revoker(id(0, w(1, idA), idA)), sw("S1", false, true), sw("S2", none...)}, bound: 3},
		&scenario{name: "revoked with a renewal", init: "A", page: 1, ticks: 1,
			actors: []actor{w(1, idA), revoker(id(0, w(1, idA), idA)), sw("S1", false)}, bound: 2},
		&scenario{name: "no answers", init: "A", page: 1, lost: 2, ticks: 1,
			actors: []actor{w(1, idA), deleter(after(0), idA), sw("S1", false)}, bound: 1},
		&scenario{name: "no answers, once", init: "A", page: 1, lost: 2, tries: 1,
			actors: []actor{w(1, idA), revoker(id(0, w(1, idA), idA)), sw("S1", true)}, bound: 1},
		&scenario{name: "clock ahead", init: "A", page: 1,
			actors: []actor{w(1, idA), sweeper("S1", ahead, false, true)}, bound: 3},
		&scenario{name: "abort", init: "A", page: 1, plain: true,
			actors: []actor{writerOf("W1", after(1), 2, true, true, idA), sw("S1", plain2...)}, bound: 3},
		&scenario{name: "blob", init: "A", page: 1, tries: 1,
			actors: []actor{writerOf("W1", after(1), 2, true, false, idA), sw("S1", audit...), revoker(id(0, w(1, idA), idA))}, bound: 3},
		&scenario{name: "two deleters", init: "A", page: 1,
			actors: []actor{w(1, idA), deleter(after(0), idA), deleter(after(1), idA), sw("S1", plain2...)}, bound: 2},
		&scenario{name: "reader", init: "AB", page: 1, plain: true,
			actors: []actor{reader("R", early, idB), deleter(after(0), idB, idA), sw("S1", none...), sw("S2", none...)}, bound: 2},
		&scenario{name: "pinned", init: "Ac", page: 1, plain: true,
			actors: []actor{w(1, idB), deleter(after(0), idB, idA), sw("S1", plain2...)}, bound: 3},
		&scenario{name: "last holder", init: "Abr", page: 1, plain: true,
			actors: []actor{sw("S1", none...), deleter(after(0), idA), sw("S2", none...), closer(idR)}, bound: 2},
		&scenario{name: "reader last", init: "AB", page: 2, plain: true,
			actors: []actor{reader("R", after(5), idB), deleter(after(0), idB, idA), sw("S1", plain2...)}, bound: 3},
		&scenario{name: "reader expired", init: "A", page: 1, plain: true,
			actors: []actor{reader("R", after(5), idA), deleter(after(0), idA), sweeper("S1", ahead, plain2...)}, bound: 3},
		&scenario{name: "one id", init: "A", page: 1, lost: 1,
			actors: []actor{withSameID(0, w(1, idA)), withSameID(1, writer("W2", after(1), 1, idA)), sw("S1", audit...)}, bound: 1},
		&scenario{name: "directory", init: "dB", dir: true, plain: true,
			actors: []actor{late, deleter(after(0), idB), sw("S1", plain2...), sw("S2", none...)}, bound: 2},
		&scenario{name: "directory, reader", init: "AB", dir: true, plain: true,
			actors: []actor{reader("R", early, idB), deleter(after(0), idB, idA), sw("S1", plain2...), sw("S2", none...)}, bound: 2},
	)
}
