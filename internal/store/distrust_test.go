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

// image opens one of the checkpoints.
func (x *exhibit) image(t *testing.T, i int) *Image {
	t.Helper()
	im, err := x.s.Image(t.Context(), x.ids[i])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(im.Close)
	return im
}

// newPartlySpoiled is a store of two checkpoints, which list the same packs, with
// damage in what only the first one has of these.
func newPartlySpoiled(t *testing.T, state string) *exhibit {
	t.Helper()
	x := &exhibit{b: &buckettest.Memory{}}
	x.s = openStoreIn(t, x.b, state)
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
	base := x.image(t, 0)
	on, err := base.Base(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	put(1, PutRequest{Manifest: Manifest{Checkpoint: "cp-2", Org: "o"}, Base: base, Capture: x.want[1].capture(on)})
	first, second := base, x.image(t, 1)
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
	first.Close()
	second.Close()
	return x
}

func (x *exhibit) check(t *testing.T) *CheckReport {
	t.Helper()
	r, err := x.s.Check(t.Context(), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Damage is of those who have pages in what is damaged, and when nobody has any, nobody
// comes to need it: whoever found it, and also after the server was replaced.
func TestDamageIsOfThoseWhoHaveIt(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		find    func(t *testing.T, x *exhibit)
		again   bool // a check when the first one is deleted
		replace bool // the server, before the next checkpoint
	}{
		"a check":                       {find: found},
		"a check, the server replaced":  {find: found, replace: true},
		"a check, and again":            {find: found, again: true},
		"a reader, the server replaced": {find: distrusted, replace: true},
		"a check of what is left":       {find: func(*testing.T, *exhibit) {}, again: true, replace: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			state := t.TempDir()
			x := newPartlySpoiled(t, state)
			tt.find(t, x)
			if err := x.s.Delete(t.Context(), x.ids[0]); err != nil {
				t.Fatal(err)
			}
			if tt.again {
				if r := x.check(t); len(r.Damaged()) != 0 || len(r.Problems) == 0 {
					t.Errorf("with the first one deleted: %+v", r.Problems)
				}
			}
			if tt.replace {
				x.s.Close()
				x.s = openStoreIn(t, x.b, state)
			}
			if _, err := x.s.Reindex(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			id, _, err := x.s.Put(t.Context(), PutRequest{Manifest: Manifest{Checkpoint: "cp-3", Org: "o"}, Capture: x.want[0].capture(nil)})
			if err != nil {
				t.Fatal(err)
			}
			x.rightOrDamaged(t, openStore(t, x.b), id, x.want[0], false)
		})
	}
}

// found has a check find what newPartlySpoiled spoils.
func found(t *testing.T, x *exhibit) {
	t.Helper()
	if d := x.check(t).Damaged(); d[x.ids[0]] == "" || d[x.ids[1]] != "" {
		t.Errorf("damaged: %v; the first one is %s", d, x.ids[0])
	}
}

// distrusted has whoever came upon it say that the first checkpoint is damaged.
func distrusted(_ *testing.T, x *exhibit) { x.s.Distrust(x.ids[0]) }

// What is whole again, or gone, is not remembered as damaged.
func TestSpoiledForgets(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	x := newPartlySpoiled(t, state)
	distrusted(t, x)
	found(t, x)
	damaged := len(x.s.spoiled.keys)
	whole := openStore(t, x.b).spoiled
	if damaged == 0 || len(whole.keys) != 0 {
		t.Fatalf("%d damaged packs; a server of another directory knows %d", damaged, len(whole.keys))
	}
	for key := range x.s.spoiled.keys {
		if err := x.b.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for i := range x.ids {
		if err := x.s.Delete(t.Context(), x.ids[i]); err != nil {
			t.Fatal(err)
		}
	}
	x.check(t)
	if again, err := openSpoiled(x.s.spoiled.path); err != nil || len(again.keys) != 0 {
		t.Errorf("%v, %v", again.keys, err)
	}

	sound := newExhibit(t)
	if sound.s.Distrust(sound.ids[1]); !sound.s.spoiled.has(sound.firstPacks[0]) {
		t.Fatal("not distrusted")
	}
	if sound.clean(t); sound.s.spoiled.has(sound.firstPacks[0]) {
		t.Error("what a check has read whole is still distrusted")
	}
}

// What is found damaged while a capture of it is stored is not built on.
func TestDistrustOfTheBase(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	req := PutRequest{Manifest: Manifest{Checkpoint: "cp-3", Org: "o"}, Capture: x.want[0].capture(nil)}
	req.Base, req.Distrust = x.image(t, 1), []string{x.ids[1]}
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

// What a repair moves out of the way can be put back: its data are there until the
// next sweep.
func TestRepairDestroysNothing(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	key := manifestName(x.ids[1])
	whole := x.get(t, key)
	x.set(t, key, whole[:20])
	before := x.list(t, "packs/")
	done, err := x.s.Repair(t.Context(), nil)
	if err != nil || !strings.Contains(strings.Join(done, "\n"), "moved to damaged/"+key) {
		t.Fatalf("%v, %v", done, err)
	}
	if left := x.list(t, "packs/"); len(left) != len(before) {
		t.Errorf("%d packs are left of %d", len(left), len(before))
	}
	if got := x.get(t, "damaged/"+key); !bytes.Equal(got, whole[:20]) {
		t.Errorf("moved: %q", got)
	}
	x.set(t, key, whole)
	x.clean(t)
	x.rightOrDamaged(t, openStore(t, x.b), x.ids[1], x.want[1], false)
}
