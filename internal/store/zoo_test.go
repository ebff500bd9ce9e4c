// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/refs"
)

// exhibit is a store of two checkpoints, the second based on the first, in which
// one thing is wrong.
type exhibit struct {
	b          *buckettest.Memory
	s          *Store
	ids        [2]string
	want       [2]content
	manifests  [2]*Manifest
	firstPacks []string // that both need
}

func newExhibit(t *testing.T) *exhibit {
	t.Helper()
	rng := seeded(t)
	x := &exhibit{b: &buckettest.Memory{}}
	x.s = openStore(t, x.b)
	g := newGuest(rng, 200)
	engine, image := file(t, "the engine's binary"), file(t, "the image")
	base := ""
	for i := range x.ids {
		x.want[i] = g.content()
		req := PutRequest{
			Manifest:   Manifest{Checkpoint: "cp-" + string(rune('1'+i)), Org: "o", Build: sha(t, engine), ImageHash: sha(t, image)},
			EnginePath: engine, ImagePath: image, Capture: x.want[i].capture(nil),
		}
		if base != "" {
			im, b := openBase(t, x.s, base)
			defer im.Close()
			req.Base, req.Capture = im, x.want[i].capture(b)
		}
		var err error
		if x.ids[i], x.manifests[i], err = x.s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		base = x.ids[i]
		g.run(5)
	}
	for _, o := range x.list(t, "packs/"+x.ids[0]+"/") {
		if b := x.get(t, o); bytes.HasPrefix(b, []byte("OCPACK2\n")) {
			x.firstPacks = append(x.firstPacks, o)
		}
	}
	return x
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, bytes.Repeat([]byte(text), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sha(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (x *exhibit) list(t *testing.T, prefix string) (keys []string) {
	t.Helper()
	if err := x.s.vault.list(t.Context(), prefix, func(o bucket.Object) { keys = append(keys, o.Key) }); err != nil {
		t.Fatal(err)
	}
	return keys
}

func (x *exhibit) get(t *testing.T, key string) []byte {
	t.Helper()
	b, _, err := x.b.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return bytes.Clone(b)
}

func (x *exhibit) set(t *testing.T, key string, b []byte) {
	t.Helper()
	if _, err := x.b.Put(t.Context(), key, b, bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
}

func (x *exhibit) flip(t *testing.T, key string, at int) {
	t.Helper()
	b := x.get(t, key)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 4
	x.set(t, key, b)
}

// Whatever is wrong in a store is found and named; nothing wrong is ever read as
// if it were right; the other checkpoint stays usable where it does not need what
// is damaged.
func TestZoo(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		spoil    func(t *testing.T, x *exhibit) (key string)
		data     bool // found only when everything is read
		harmless bool
		hits     [2]bool // checkpoints that need what is damaged
	}{
		"missing pack": {hits: [2]bool{true, true}, spoil: func(t *testing.T, x *exhibit) string {
			return x.firstPacks[0] + errText(x.b.Delete(t.Context(), x.firstPacks[0]))
		}},
		"truncated pack": {hits: [2]bool{true, true}, spoil: func(t *testing.T, x *exhibit) string {
			b := x.get(t, x.firstPacks[0])
			x.set(t, x.firstPacks[0], b[:len(b)/2])
			return x.firstPacks[0]
		}},
		"flipped byte in a segment": {data: true, hits: [2]bool{true, true}, spoil: func(t *testing.T, x *exhibit) string {
			for at := 100; at < len(x.get(t, x.firstPacks[0]))/2; at += 1000 {
				x.flip(t, x.firstPacks[0], at)
			}
			return x.firstPacks[0]
		}},
		"flipped byte in a pack's index": {harmless: true, spoil: func(t *testing.T, x *exhibit) string {
			x.flip(t, x.firstPacks[0], -100)
			return x.firstPacks[0]
		}},
		"missing index": {harmless: true, spoil: func(t *testing.T, x *exhibit) string {
			b := x.get(t, x.firstPacks[0])
			x.set(t, x.firstPacks[0], b[:len(b)-8])
			return x.firstPacks[0]
		}},
		"flipped byte in a pack's head": {data: true, harmless: true, spoil: func(t *testing.T, x *exhibit) string {
			x.flip(t, x.firstPacks[0], 0)
			return x.firstPacks[0]
		}},
		"something that is no checkpoint's": {spoil: func(t *testing.T, x *exhibit) string {
			x.set(t, "ckpt/stray", []byte("stray"))
			return "ckpt/stray"
		}},
		"flipped byte in a table": {hits: [2]bool{true, false}, spoil: func(t *testing.T, x *exhibit) string {
			x.flip(t, x.manifests[0].Table.Key, 30)
			return x.manifests[0].Table.Key
		}},
		"missing table": {hits: [2]bool{false, true}, spoil: func(t *testing.T, x *exhibit) string {
			return x.manifests[1].Table.Key + errText(x.b.Delete(t.Context(), x.manifests[1].Table.Key))
		}},
		"flipped byte in the hashes": {harmless: true, spoil: func(t *testing.T, x *exhibit) string {
			x.flip(t, x.manifests[0].Hashes.Key, 30)
			return x.manifests[0].Hashes.Key
		}},
		"flipped byte in the engine": {data: true, hits: [2]bool{true, true}, spoil: func(t *testing.T, x *exhibit) string {
			x.flip(t, x.manifests[0].Engine.Parts[0].Key, 20)
			return x.manifests[0].Engine.Parts[0].Key
		}},
		"missing image": {hits: [2]bool{true, true}, spoil: func(t *testing.T, x *exhibit) string {
			k := x.manifests[0].Image.Parts[0].Key
			return k + errText(x.b.Delete(t.Context(), k))
		}},
		"flipped byte in a header": {hits: [2]bool{true, false}, spoil: func(t *testing.T, x *exhibit) string {
			x.flip(t, manifestName(x.ids[0]), 20)
			return manifestName(x.ids[0])
		}},
		"flipped byte in a manifest": {hits: [2]bool{false, true}, spoil: func(t *testing.T, x *exhibit) string {
			x.flip(t, manifestName(x.ids[1]), -200)
			return manifestName(x.ids[1])
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExhibit(t)
			x.clean(t)
			key := tt.spoil(t, x)
			fresh := openStore(t, x.b) // that has nothing in its cache
			found := func(data bool) bool {
				r, err := fresh.Check(t.Context(), data, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range r.Problems {
					if strings.Contains(p.What, "bucket:") || strings.Contains(p.What, "EOF") {
						t.Errorf("not in words for people: %s", p.What)
					}
					if p.Key == key && p.Harmless == tt.harmless && p.What != "" {
						return true
					}
				}
				t.Logf("data %v: %+v", data, r.Problems)
				return false
			}
			if !found(true) {
				t.Error("not found by a check of everything")
			}
			if got := found(false); got == tt.data {
				t.Errorf("found by a check without the data: %v", got)
			}
			for i, id := range x.ids {
				x.rightOrDamaged(t, fresh, id, x.want[i], tt.hits[i])
			}
			if _, err := fresh.Repair(t.Context(), nil); err != nil {
				t.Errorf("repair: %v", err)
			}
			if _, err := fresh.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
				t.Errorf("space cannot be freed after a repair: %v", err)
			}
			for i, id := range x.ids {
				if !tt.hits[i] {
					x.rightOrDamaged(t, fresh, id, x.want[i], false)
				}
			}
		})
	}
}

func errText(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// clean demands that nothing is found in a sound store.
func (x *exhibit) clean(t *testing.T) {
	t.Helper()
	if r, err := x.s.Check(t.Context(), true, nil); err != nil || len(r.Problems) > 0 || r.Checkpoints != 2 || r.Leftovers > 0 {
		t.Fatalf("before: %+v, %v", r, err)
	}
}

// rightOrDamaged demands that a checkpoint reads as it was, or, if it is hit,
// fails with a fault that names it.
func (x *exhibit) rightOrDamaged(t *testing.T, s *Store, id string, want content, hit bool) {
	t.Helper()
	im, err := s.Image(t.Context(), id)
	if err == nil {
		defer im.Close()
		if !hit {
			compare(t, im, want, seeded(t))
		}
		err = im.Verify(t.Context(), nil)
		for i, name := range fileNames {
			b := make([]byte, im.File(name).Size())
			n, _ := im.File(name).ReadAt(b, 0)
			if !bytes.Equal(b[:n], want.files[i][:n]) {
				t.Errorf("%s reads wrong bytes", name)
			}
		}
	}
	switch {
	case hit && !fault.Is(err, fault.Damaged):
		t.Errorf("%s: %v", id, err)
	case hit && !strings.Contains(err.Error(), "cp-") && !strings.Contains(err.Error(), id):
		t.Errorf("the damage does not name the checkpoint: %v", err)
	case !hit && err != nil && !errors.Is(err, ErrNotNeeded):
		t.Errorf("%s: %v", id, err)
	}
}

// What nobody needs is told apart from damage, and freed by a repair.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	x.set(t, "packs/"+strings.Replace(x.ids[0], "1", "2", 1)+"/0123456789abcdef", []byte("half an upload"))
	x.set(t, "packs/"+x.ids[0]+"/fedcba9876543210", x.get(t, x.firstPacks[0])) // a duplicate pack
	r, err := x.s.Check(t.Context(), true, nil)
	if err != nil || r.Leftovers != 2 || len(r.Problems) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	done, err := x.s.Repair(t.Context(), nil)
	if err != nil || len(done) != 1 || !strings.Contains(done[0], "2 objects") {
		t.Errorf("repair: %v, %v", done, err)
	}
	x.clean(t)
	for i, id := range x.ids {
		x.rightOrDamaged(t, x.s, id, x.want[i], false)
	}
}

// A checkpoint of a later release is not touched, and nothing is freed that it
// may need.
func TestLaterRelease(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	w, err := x.s.refs.Begin(t.Context(), x.ids[:1], nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]any{"format": FormatName, "version": FormatVersion + 1, "checkpoint": "cp-3"})
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, sealLine+hexSum(raw)+"\n"...)
	if err := w.Commit(t.Context(), x.firstPacks, raw); err != nil {
		t.Fatal(err)
	}
	fresh := openStore(t, x.b)
	if _, err := fresh.Image(t.Context(), w.ID()); !fault.Is(err, fault.Invalid) || !strings.Contains(fault.As(err).Hint, "upgrade oc") {
		t.Errorf("open: %v", err)
	}
	for _, id := range x.ids {
		if err := fresh.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fresh.Repair(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, p := range x.firstPacks {
		x.get(t, p)
	}
}

// A pager's claim keeps a checkpoint's data: it reads on after it was deleted and
// swept, by anybody; afterwards the space is given back.
func TestReadWhileDeleted(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	im, err := x.s.Image(t.Context(), x.ids[1])
	if err != nil {
		t.Fatal(err)
	}
	other := openStore(t, x.b)
	for _, id := range x.ids {
		if err := other.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := other.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
			t.Fatal(err)
		}
	}
	compare(t, im, x.want[1], seeded(t))
	im.Close()
	for range 2 {
		if _, err := other.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
			t.Fatal(err)
		}
	}
	if left := x.list(t, ""); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The base of a capture is deleted while it is made: what is the same as there
// is stored anew.
func TestBaseGone(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	im, b := openBase(t, x.s, x.ids[0])
	defer im.Close()
	c := x.want[1].capture(b)
	for _, id := range x.ids {
		if err := x.s.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	id, m, err := x.s.Put(t.Context(), PutRequest{Manifest: Manifest{Checkpoint: "cp-3", Org: "o"}, Capture: c, Base: im})
	if err != nil {
		t.Fatal(err)
	}
	im.Close()
	for range 2 {
		if _, err := x.s.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
			t.Fatal(err)
		}
	}
	check(t, x.s, id, x.want[1], seeded(t))
	if m.CopiedBytes != int64(len(x.want[1].files[2])) {
		t.Errorf("%d of %d bytes are said to be copied", m.CopiedBytes, len(x.want[1].files[2]))
	}
}

// With nothing remembered, the index is made anew from the packs, and pages are
// found again.
func TestReindex(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	fresh := openStore(t, x.b)
	if n, err := fresh.Reindex(t.Context(), nil); err != nil || n < 2 {
		t.Fatalf("%d packs, %v", n, err)
	}
	_, m, err := fresh.Put(t.Context(), PutRequest{Manifest: Manifest{Checkpoint: "cp-3", Org: "o"}, Capture: x.want[0].capture(nil)})
	if err != nil || m.AddedBytes > m.SizeBytes/20 {
		t.Errorf("the same capture again adds %d of %d bytes, %v", m.AddedBytes, m.SizeBytes, err)
	}
	_, m, err = fresh.Put(t.Context(), PutRequest{Manifest: Manifest{Checkpoint: "cp-4", Org: "another"}, Capture: x.want[0].capture(nil)})
	if err != nil || m.AddedBytes < m.SizeBytes/4 {
		t.Errorf("another org's capture adds %d of %d bytes: it shares pages, %v", m.AddedBytes, m.SizeBytes, err)
	}
}

// What is in no pack of pages is not read to complete the index.
func TestReindexReadsOnlyPacks(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	b := &counted{Bucket: x.b, reads: map[string]int{}}
	fresh := openStore(t, b)
	n, err := fresh.Reindex(t.Context(), nil)
	if err != nil || n < 2 || b.total() != 2*n { // its footer and its index
		t.Errorf("%d packs with %d reads, %v", n, b.total(), err)
	}
	if n, err := fresh.Reindex(t.Context(), nil); err != nil || n != 0 {
		t.Errorf("%d packs again, %v", n, err)
	}
	if again := b.total(); again != 2*n {
		t.Errorf("%d reads where nothing is missing", again-2*n)
	}
}

// Every request of a Put may fail, before or after its effect, or be the last
// one: afterwards the checkpoint is there, and right, or it is not, nobody else is
// harmed, and what is left over can be freed.
func TestPutUnderFaults(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	for _, kind := range []buckettest.Fault{buckettest.FaultBefore, buckettest.FaultAfter, buckettest.FaultCrashBefore, buckettest.FaultCrashAfter} {
		for at := 0; ; at++ {
			x := newExhibit(t)
			n := 0
			armed := false
			faulty := buckettest.NewFaulty(x.b, func(string, string) buckettest.Fault {
				if n++; armed && n == at+1 {
					return kind
				}
				return buckettest.FaultNone
			})
			s := openStore(t, faulty)
			if _, err := s.Reindex(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			n, armed = 0, true
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			id, err := tryPut(ctx, s, "cp-new", x.want[1], x.ids[0])
			cancel()
			over := n <= at
			after := openStore(t, x.b)
			for i, old := range x.ids {
				check(t, after, old, x.want[i], rng)
			}
			if err == nil {
				check(t, after, id, x.want[1], rng)
			}
			for object, cp := range after.List() {
				if cp == "cp-new" {
					check(t, after, object, x.want[1], rng) // it may be there though nobody was told
				}
			}
			if _, err := after.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
				t.Fatal(err)
			}
			for i, old := range x.ids {
				check(t, after, old, x.want[i], rng)
			}
			if over {
				if err != nil {
					t.Errorf("without a fault: %v", err)
				}
				break
			}
		}
	}
}
