// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
)

const testTTL = time.Minute

// scenario is a bucket and the actors who work on it at the same time.
type scenario struct {
	name   string
	init   string // the bases: see bases
	actors []actor
	page   int   // keys in a page of a list
	dir    bool  // a bucket with a lock, and lists that are not ordered in time
	lost   int   // writes whose answer may be lost, and which may land later
	ticks  int64 // times that a third of the TTL may pass
	tries  int   // of requests whose effect must be known
	cold   bool  // sweeps remember nothing
	plain  bool  // nothing needs an audit in the end
	bound  int   // preemptions of the normal run
}

// actor does something with the real package over its own view of the bucket.
type actor struct {
	name  string
	clock time.Duration // since the epoch, at the start
	do    func(ctx context.Context, a *act)
}

// act is an actor in one run.
type act struct {
	actor
	r   *run
	log *Log
}

// run is one order of the requests of a scenario.
type run struct {
	*world
	sc      *scenario
	f       faults
	clock   clock
	ticked  int64
	lost    int
	trace   []string
	acks    map[ack]error
	leases  map[string][]string
	deletes map[string]bool // ids that somebody has deleted, or is about to
}

// ack is a writer; what Commit told it is kept.
type ack struct{ id, name string }

// explorer runs a scenario over and over, each time in another order.
type explorer struct {
	sc      *scenario
	f       faults
	bound   int              // preemptions allowed
	seen    map[uint64]int16 // state: preemptions left when it was expanded, + 1
	todo    [][]uint8
	runs    int
	steps   int
	maxRuns int // 0: no limit
	cut     bool
}

// option is something that can happen next.
type option struct {
	label string
	actor int
	cost  int
	do    func()
}

// stream gives an actor's random numbers, always the same ones.
func stream(i int) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{byte(i)}) }

// logOf gives the Log of an actor; clock is in the run's time.
func (r *run) logOf(b bucket.Bucket, i int, at time.Duration) *Log {
	l := New(b, Config{Random: stream(i), TTL: testTTL, Roots: []string{"images/"}, Clock: func() time.Time {
		return time.Unix(0, 0).Add(at + r.clock.since())
	}})
	l.faults, l.tries = r.f, max(r.sc.tries, 1)
	l.pause = r.clock.pause
	if r.sc.cold {
		l.room = 0
	}
	return l
}

// idOf foretells the id of actor i's first object, with these pins.
func idOf(sc *scenario, i int, pins ...string) string {
	id, err := New(nil, Config{Random: stream(i), Clock: func() time.Time { return time.Unix(0, 0).Add(sc.actors[i].clock) }}).newID(pins)
	if err != nil {
		panic(err)
	}
	return id
}

func (x *explorer) begin() *run {
	r := &run{sc: x.sc, f: x.f, lost: x.sc.lost, acks: map[ack]error{}, leases: map[string][]string{}, deletes: map[string]bool{}}
	r.world = newWorld(bases(x.sc.init, x.sc.page), x.sc.dir, len(x.sc.actors))
	r.stray = x.sc.lost > 0
	return r
}

// one runs the scenario: the choices of prefix first, then choose's. It stops at
// a state that was expanded before.
func (x *explorer) one(prefix []uint8, choose func(n int) int) (*run, string) {
	x.runs++
	r := x.begin()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	r.running = len(x.sc.actors)
	for i, a := range x.sc.actors {
		var b bucket.Bucket = view{r.world, i}
		if x.sc.dir {
			b = dirView{view{r.world, i}}
		}
		wg.Go(func() {
			a.do(ctx, &act{actor: a, r: r, log: r.logOf(b, i, a.clock)})
			r.mu.Lock()
			r.running--
			r.note(i, "done")
			r.mu.Unlock()
		})
	}
	bad := x.play(r, prefix, choose)
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	cancel()
	wg.Wait()
	return r, bad
}

func (x *explorer) play(r *run, prefix []uint8, choose func(int) int) string {
	last, left := -1, x.bound
	path := slices.Clone(prefix)
	for step := 0; ; step++ {
		synctest.Wait()
		x.steps++
		opts := r.options(last)
		if step >= len(prefix) {
			if bad := r.check(); bad != "" {
				return bad
			}
		}
		if len(opts) == 0 {
			if r.running == 0 {
				return r.quiesce()
			}
			if step > 10_000 {
				return "stuck"
			}
			r.clock.advance(2 * time.Second) // somebody waits before he tries again
			step--
			continue
		}
		c := 0
		switch {
		case step < len(prefix):
			c = int(prefix[step])
		case choose != nil:
			c = choose(len(opts))
		default:
			if x.known(r, last, left) {
				return ""
			}
			if bad := r.quiesce(); bad != "" {
				return bad
			}
			for i := len(opts) - 1; i > 0; i-- {
				if opts[i].cost <= left {
					x.todo = append(x.todo, append(slices.Clone(path), uint8(i)))
				}
			}
		}
		if step >= len(prefix) {
			path = append(path, uint8(c))
		}
		left -= opts[c].cost
		last = opts[c].actor
		r.trace = append(r.trace, opts[c].label)
		opts[c].do()
	}
}

// known tells whether a state was expanded with as many preemptions left, and
// notes it.
func (x *explorer) known(r *run, last, left int) bool {
	if x.bound >= unbounded {
		last, left = 0, 0
	}
	k := r.key(r.ticked, r.clock.since(), r.lost, last)
	if int(x.seen[k]) > left {
		return true
	}
	x.seen[k] = int16(left) + 1
	return false
}

const unbounded = 1000

// options gives what can happen next; the first is what happens if nobody
// interferes.
func (r *run) options(last int) []option {
	var opts []option
	goesOn := false
	ready := r.ready(&r.pending)
	for _, q := range ready {
		goesOn = goesOn || q.actor == last
	}
	for _, q := range ready {
		o := option{label: r.name(q.actor) + ": " + q.label, actor: q.actor, do: func() { r.deliver(q) }}
		if goesOn && q.actor != last {
			o.cost = 1
		}
		opts = append(opts, o)
	}
	slices.SortStableFunc(opts, func(a, b option) int { return a.cost - b.cost })
	for _, q := range r.ready(&r.pending) {
		if q.write && r.lost > 0 {
			opts = append(opts, option{"(no answer) " + r.name(q.actor) + ": " + q.label, q.actor, 0, func() { r.lost--; r.detach(q) }})
		}
	}
	for _, q := range r.ready(&r.detached) {
		opts = append(opts, option{"(late) " + r.name(q.actor) + ": " + q.label, last, 0, func() { r.land(q) }})
	}
	if r.ticked < r.sc.ticks {
		opts = append(opts, option{"time passes", last, 0, func() {
			r.ticked++
			r.clock.advance(testTTL/3 + time.Second)
		}})
	}
	return opts
}

func (r *run) name(i int) string { return r.sc.actors[i].name }

// check is what must hold in every state.
func (r *run) check() string {
	committed := map[ack]bool{}
	for _, k := range r.keys(Prefix) {
		o, err := decode(strings.TrimPrefix(k, Prefix), r.objects[k].body)
		if err != nil {
			return err.Error()
		}
		if o.State == Committed {
			committed[ack{o.ID, string(o.Payload)}] = true
			if bad := r.missing(o.Packs); bad != "" {
				return "committed " + o.ID + " lists " + bad + ", which is gone"
			}
		}
		if packs, ok := r.leases[o.ID]; ok && o.State == Reading {
			if bad := r.missing(packs); bad != "" {
				return "a reader's " + bad + " is gone"
			}
		}
	}
	for w, err := range r.acks {
		switch {
		case err == nil && !committed[w] && !r.deletes[w.id]:
			return fmt.Sprintf("%v was committed and is not, though nobody deleted it", w)
		case err != nil && !errors.Is(err, ErrUnknown) && committed[w]:
			return fmt.Sprintf("%v is committed, and its writer was told: %v", w, err)
		}
	}
	return ""
}

func (r *run) missing(packs []string) string {
	for _, p := range packs {
		if _, ok := r.objects[p]; !ok {
			return p
		}
	}
	return ""
}

// quiesce is what must hold in every state if all actors have died in it: when
// their claims have expired, sweeps leave the packs of the committed objects and
// nothing else.
func (r *run) quiesce() string {
	m := r.clone()
	m.page = 0
	l := r.logOf(m, 99, 24*time.Hour)
	for range 2 {
		if _, err := l.Sweep(context.Background(), Options{Audit: !r.sc.plain}); err != nil {
			return err.Error()
		}
	}
	want := map[string]bool{}
	for _, k := range m.keys(Prefix) {
		o, err := decode(strings.TrimPrefix(k, Prefix), m.objects[k].body)
		if err != nil || o.State != Committed {
			return fmt.Sprintf("after all is over %s is there (%v)", k, err)
		}
		want[k] = true
		for _, p := range o.Packs {
			want[p] = true
			if _, ok := m.objects[p]; !ok {
				return "after all is over " + p + " of " + k + " is gone"
			}
		}
	}
	for _, k := range m.keys("") {
		if !want[k] {
			return "after all is over " + k + " is never freed"
		}
	}
	return ""
}

// search goes through the orders depth first.
func (x *explorer) search() (*run, string) {
	x.seen = map[uint64]int16{}
	x.todo = [][]uint8{nil}
	for len(x.todo) > 0 {
		if x.maxRuns > 0 && x.runs >= x.maxRuns {
			x.cut = true
			return nil, ""
		}
		prefix := x.todo[len(x.todo)-1]
		x.todo = x.todo[:len(x.todo)-1]
		if r, bad := x.one(prefix, nil); bad != "" {
			return r, bad
		}
	}
	return nil, ""
}

// random takes random orders, in which an actor goes on more often than not.
func (x *explorer) random(seed uint64, runs int) (*run, string) {
	for i := range runs {
		g := rand.New(rand.NewPCG(seed, uint64(i)))
		go1 := 0.3 + 0.6*g.Float64()
		r, bad := x.one(nil, func(n int) int {
			if g.Float64() < go1 {
				return 0
			}
			return g.IntN(n)
		})
		if bad != "" {
			return r, bad
		}
	}
	return nil, ""
}

// inBubble runs f where goroutines can be waited for.
func inBubble(t *testing.T, f func()) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { f() })
}

func (r *run) story() string { return "\n\t" + strings.Join(r.trace, "\n\t") }
