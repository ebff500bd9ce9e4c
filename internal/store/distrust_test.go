// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/refs"
)

// What is the same as in a checkpoint that is known to be damaged is stored anew,
// so that a sandbox that still runs can be saved.
func TestDistrust(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	for at := 100; at < len(x.get(t, x.firstPacks[0]))/2; at += 1000 {
		x.flip(t, x.firstPacks[0], at)
	}
	x.flip(t, x.manifests[0].Engine.Parts[0].Key, 20)
	again := func(distrust ...string) (string, *Manifest) {
		engine := file(t, "the engine's binary")
		id, m, err := x.s.Put(t.Context(), PutRequest{
			Manifest: Manifest{Checkpoint: "cp-3", Org: "o", Build: sha(t, engine)}, EnginePath: engine,
			Capture: x.want[1].capture(nil), Distrust: distrust,
		})
		if err != nil {
			t.Fatal(err)
		}
		return id, m
	}
	id, _ := again()
	x.rightOrDamaged(t, openStore(t, x.b), id, x.want[1], true) // which has nothing in its cache
	id, m := again(append(x.ids[:], id)...)
	x.rightOrDamaged(t, openStore(t, x.b), id, x.want[1], false)
	r, err := x.s.Check(t.Context(), true, nil)
	if err != nil || r.Damaged()[id] != "" || m.AddedBytes == 0 {
		t.Errorf("%v, %v", r.Damaged(), err)
	}
}

// Damage is of those who have pages in what is damaged, and when nobody has any, nobody
// comes to need it.
func TestDamageIsOfThoseWhoHaveIt(t *testing.T) {
	t.Parallel()
	x := &exhibit{b: &buckettest.Memory{}}
	x.s = openStore(t, x.b)
	image := func(id string) *Image {
		im, err := x.s.Image(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(im.Close)
		return im
	}
	put := func(i int, req PutRequest) {
		var err error
		if x.ids[i], _, err = x.s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	g := newGuest(seeded(t), 1000)
	x.want[0] = g.content()
	put(0, PutRequest{Manifest: Manifest{Checkpoint: "cp-1", Org: "o"}, Capture: x.want[0].capture(nil)})
	random(g.rng, g.files[0][len(g.files[0])/2:]) // most of what it has is replaced
	x.want[1] = g.content()
	base := image(x.ids[0])
	on, err := base.Base(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	put(1, PutRequest{Manifest: Manifest{Checkpoint: "cp-2", Org: "o"}, Base: base, Capture: x.want[1].capture(on)})
	base.Close()
	first, second := image(x.ids[0]), image(x.ids[1])
	has := map[string]map[int64]bool{}
	for _, s := range second.table.Segments {
		k := second.table.Packs[s.Pack]
		if has[k] == nil {
			has[k] = map[int64]bool{}
		}
		has[k][s.Offset] = true
	}
	hit := false
	for _, s := range first.table.Segments {
		k := first.table.Packs[s.Pack]
		if has[k] != nil && !has[k][s.Offset] {
			x.flip(t, k, int(s.Offset)+3)
			hit = true
		}
	}
	if !hit {
		t.Fatal("all that the first checkpoint has in packs that it shares, the second one has too")
	}
	check := func() *CheckReport {
		r, err := x.s.Check(t.Context(), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if d := check().Damaged(); d[x.ids[0]] == "" || d[x.ids[1]] != "" {
		t.Errorf("damaged: %v; the first one is %s", d, x.ids[0])
	}
	first.Close()
	if err := x.s.Delete(t.Context(), x.ids[0]); err != nil {
		t.Fatal(err)
	}
	if r := check(); len(r.Damaged()) != 0 || len(r.Problems) == 0 {
		t.Errorf("with the first one deleted: %+v", r.Problems)
	}
	req := PutRequest{Manifest: Manifest{Checkpoint: "cp-3", Org: "o"}, Capture: x.want[0].capture(nil)}
	id, _, err := x.s.Put(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	x.rightOrDamaged(t, openStore(t, x.b), id, x.want[0], false)
	req.Base, req.Distrust = second, []string{x.ids[1]}
	if _, _, err := x.s.Put(t.Context(), req); !fault.Is(err, fault.Unavailable) {
		t.Errorf("on a base that was found damaged: %v", err)
	}
}

// A sweep that does not know what something needs says so, and a repair does what
// it can.
func TestNothingFreed(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	key := manifestName(x.ids[1])
	whole := x.get(t, key)
	x.set(t, key, bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":2`), 1))
	fresh := openStore(t, x.b)
	if _, err := fresh.Sweep(t.Context(), refs.Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(fault.As(err).Hint, "upgrade oc") {
		t.Errorf("beside a later release's: %v", err)
	}
	if done, err := fresh.Repair(t.Context(), nil); err != nil || !strings.Contains(strings.Join(done, "\n"), "nothing can be freed") {
		t.Errorf("repair: %v, %v", done, err)
	}
	x.set(t, key, whole[:20])
	if _, err := fresh.Sweep(t.Context(), refs.Options{}); !fault.Is(err, fault.Damaged) || !strings.Contains(fault.As(err).Message, key) {
		t.Errorf("beside damage: %v", err)
	}
}
