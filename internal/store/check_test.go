// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/seal"
)

// A bucket that does not answer is no damage: a check that cannot look says so, and
// judges nothing.
func TestCheckWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	pack := x.firstPacks[0]
	for what, key := range map[string]string{
		"a table": x.manifests[1].Table.Key, "hashes": x.manifests[1].Hashes.Key, "a pack": pack, "a part": x.manifests[0].Engine.Parts[0].Key,
	} {
		s := openStore(t, buckettest.NewFaulty(x.b, func(op, k string) buckettest.Fault {
			if op == buckettest.OpReadAt && k == key {
				return buckettest.FaultBefore
			}
			return buckettest.FaultNone
		}))
		if r, err := s.Check(t.Context(), true, nil); err == nil || fault.Is(err, fault.Damaged) {
			t.Errorf("%s cannot be read: %+v, %v", what, r, err)
		}
		if len(s.spoiled.keys) > 0 {
			t.Errorf("%s cannot be read: distrusted are %v", what, s.spoiled.keys)
		}
	}
}

// What is sealed with a key that the server lacks is named, and nothing more is said of
// it; the rest is looked at, and can be repaired.
func TestCheckWithoutAKey(t *testing.T) {
	t.Parallel()
	first, second := seal.Generate(), seal.Generate()
	keys := func(lines string) *seal.Keys {
		k, err := seal.ParseKeys([]byte(lines))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	x := &exhibit{b: &buckettest.Memory{}}
	x.s = openStore(t, x.b)
	g, engine := newGuest(seeded(t), 200), file(t, "the engine's binary")
	put := func(i int, k *seal.Keys, base *Image) {
		x.s.vault.keys = k
		req := PutRequest{Manifest: Manifest{Checkpoint: "cp-" + string(rune('1'+i)), Org: "o", Build: sha(t, engine)}, EnginePath: engine, Base: base}
		x.want[i] = g.content()
		req.Capture = x.want[i].capture(nil)
		if base != nil {
			on, err := base.Base(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			req.Capture = x.want[i].capture(on)
		}
		var err error
		if x.ids[i], x.manifests[i], err = x.s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		g.run(5)
	}
	put(0, keys(first), nil)
	x.s.vault.keys = keys(second + first)
	put(1, x.s.vault.keys, x.image(t, 0))
	x.s.vault.keys = keys(second)
	alone := mustPut(t, x.s, "cp-3", newGuest(seeded(t), 20).content(), "")

	s := openStore(t, x.b)
	s.vault.keys = keys(second)
	r, err := s.Check(t.Context(), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Damaged()) > 0 || len(r.Whole) != 1 || !r.Whole[alone] || len(s.spoiled.keys) > 0 {
		t.Errorf("damaged: %v, whole: %v, distrusted: %v", r.Damaged(), r.Whole, s.spoiled.keys)
	}
	named := map[string]bool{}
	for _, p := range r.Problems {
		named[p.Key] = p.Object == x.ids[1] && p.Checkpoint == "cp-2" && p.Harmless && strings.Contains(p.What, "sealed with a key that this server does not have")
	}
	shared := []string{x.manifests[1].Engine.Parts[0].Key}
	for _, key := range x.image(t, 1).table.Packs {
		if strings.HasPrefix(key, "packs/"+x.ids[0]) {
			shared = append(shared, key)
		}
	}
	for _, key := range shared {
		if !named[key] || len(shared) < 2 {
			t.Errorf("%s is not named: %+v", key, r.Problems)
		}
	}
	if _, err := s.Repair(t.Context(), nil); err != nil {
		t.Errorf("repair: %v", err)
	}
	s.vault.keys = keys(second + first)
	if r, err := s.Check(t.Context(), true, nil); err != nil || len(r.Problems) > 0 || len(r.Whole) != 3 {
		t.Errorf("with all keys: %+v, %v", r, err)
	}
}
