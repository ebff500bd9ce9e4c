// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/refs"
)

// world is two servers on a bucket that fails now and then, and what must be in
// it.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	b       *buckettest.Memory
	faults  [2]*buckettest.Faulty
	servers [2]*Store
	guests  [2]*guest
	heads   [2]string          // what the guests' states descend from
	acked   map[string]content // checkpoints that were said to be stored, and not to be deleted
	maybe   map[string]bool    // of which a deletion has failed: there or not
	n       int
}

// start starts a server, as after a crash.
func (w *world) start(i int) {
	w.faults[i] = buckettest.NewFaulty(w.b, nil) // opening is tested elsewhere
	w.servers[i] = openStore(w.t, w.faults[i])
	w.faults[i] = buckettest.NewFaulty(w.b, buckettest.Seeded(w.rng.Uint64(), 0.01))
	w.servers[i].vault.b = w.faults[i]
	w.servers[i].refs = refs.New(w.faults[i], refsConfig)
}

func (w *world) ids() []string {
	var ids []string
	for id := range w.acked {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (w *world) step() {
	i := w.rng.IntN(2)
	s := w.servers[i]
	ctx := w.t.Context()
	switch w.rng.IntN(8) {
	case 0, 1, 2: // checkpoint
		w.guests[i].run(w.rng.IntN(30))
		c := w.guests[i].content()
		w.n++
		id, err := tryPut(ctx, s, fmt.Sprintf("cp-%d", w.n), c, w.heads[i])
		if err != nil {
			w.heads[i] = "" // the next one is a whole capture
			return
		}
		w.acked[id], w.heads[i] = c, id
	case 3: // fork or restore: go on from any checkpoint
		if ids := w.ids(); len(ids) > 0 {
			w.heads[i] = ids[w.rng.IntN(len(ids))]
		}
	case 4: // delete, also what somebody goes on from
		if ids := w.ids(); len(ids) > 2 {
			id := ids[w.rng.IntN(len(ids))]
			delete(w.acked, id)
			if s.Delete(ctx, id) != nil {
				w.maybe[id] = true
			}
		}
	case 5:
		_, _ = s.Sweep(ctx, refs.Options{Audit: w.rng.IntN(2) == 0}) // may fail; must not harm
	case 6:
		if w.rng.IntN(4) == 0 {
			w.faults[i].Crash()
			w.start(i)
			w.heads[i] = ""
		}
	case 7: // read
		if ids := w.ids(); len(ids) > 0 {
			id := ids[w.rng.IntN(len(ids))]
			check(w.t, w.clean(), id, w.acked[id], w.rng)
		}
	}
}

// clean is a server whose bucket does not fail.
func (w *world) clean() *Store { return openStore(w.t, w.b) }

// Whatever two servers do at once in a bucket that fails, and whenever one of
// them crashes: what was said to be stored is there, byte for byte, and what was
// said to be deleted is not.
func TestModel(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	w := &world{t: t, rng: rng, b: &buckettest.Memory{}, acked: map[string]content{}, maybe: map[string]bool{}}
	for i := range w.servers {
		w.start(i)
		w.guests[i] = newGuest(rng, 100)
	}
	steps := 300
	if os.Getenv("OC_TEST_LONG") != "" {
		steps = 5000
	}
	for range steps {
		w.step()
		if t.Failed() {
			return
		}
	}
	s := w.clean()
	if _, err := s.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Check(context.WithoutCancel(t.Context()), true, nil); err != nil || len(r.Problems) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	for id, c := range w.acked {
		check(t, s, id, c, rng)
	}
	for id := range s.List() {
		_, acked := w.acked[id]
		if im, err := s.Image(t.Context(), id); err == nil {
			im.Close()
		} else if acked || !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", id, err)
		}
	}
	t.Logf("%d checkpoints, %d left, %d deletions unclear", w.n, len(w.acked), len(w.maybe))
}
