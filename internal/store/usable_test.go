// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/bucket/dir"
	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/seal"
)

// shared is a checkpoint at the end of a chain, whose segments hold pages of
// earlier checkpoints beside its own.
type shared struct {
	b    *buckettest.Memory
	open func(bucket.Bucket) *Store // the store anew for each image; nil: never
	s    *Store
	id   string
	want content
}

func newShared(t *testing.T, open func(bucket.Bucket) *Store) *shared {
	t.Helper()
	x := &shared{b: &buckettest.Memory{}}
	x.s = open(x.b)
	g := newGuest(seeded(t), 4)
	g.files[0] = make([]byte, 150*page)
	random(g.rng, g.files[0])
	clear(g.files[0][3*page:][:2*page])
	g.holes = map[int]bool{}
	g.meta = make([]byte, 2*page)
	random(g.rng, g.meta)
	meta := g.meta // stays what it is: of its segment one page after the other is nobody's
	for i := range 4 {
		g.state = make([]byte, 2*page+100)
		random(g.rng, g.state)
		for k := range 20 * i {
			random(g.rng, g.files[0][(7*k+i)%150*page:][:page])
		}
		g.meta = meta
		x.want = g.content()
		x.id = mustPut(t, x.s, fmt.Sprint("cp-", i), x.want, x.id)
		if _, err := x.s.Reindex(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func (x *shared) image(t testing.TB) *Image {
	t.Helper()
	if x.open != nil {
		x.s = x.open(x.b)
	}
	im, err := x.s.Image(t.Context(), x.id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(im.Close)
	return im
}

// spoil flips a bit at an offset of an object, and gives what undoes it.
func (x *shared) spoil(t *testing.T, key string, at int64) (undo func()) {
	t.Helper()
	flip := func() {
		raw, _, err := x.b.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		raw = bytes.Clone(raw)
		raw[at] ^= 1 << (at % 8)
		if _, err := x.b.Put(t.Context(), key, raw, bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	flip()
	return flip
}

// What a page of a segment is to a checkpoint.
const (
	dead    = iota // not its own
	ofPages        // of the pages file
	ofOther        // of state or meta
)

// uses tells what each page of the segments stored as they are is to the image.
func uses(im *Image) map[int][]int {
	out := map[int][]int{}
	for k, s := range im.table.Segments {
		if s.Codec == format.Raw {
			out[k] = make([]int, s.Pages)
		}
	}
	for i := range im.table.Files {
		im.table.Each(i, func(_ int64, k, slot, n int) {
			for j := slot; out[k] != nil && j < slot+n; j++ {
				if out[k][j] = ofOther; i == pagesFile {
					out[k][j] = ofPages
				}
			}
		})
	}
	return out
}

// readAll compares all that can be read of an image with what it must be, by four
// readers at once, and gives the first error.
func readAll(im *Image, want content) error {
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			for i, name := range fileNames {
				b := make([]byte, len(want.files[i]))
				n, err := im.File(name).ReadAt(b, 0)
				if !bytes.Equal(b[:n], want.files[i][:n]) {
					return errors.New(name + " reads wrong bytes")
				}
				if n < len(b) {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// What a bit is flipped of is found before anything is read if the checkpoint has
// it. If it does not, then all that the checkpoint has can be used and read; Verify
// finds it all the same. Where pages are of state or meta, which have no cheap
// hashes, the segment is damaged as a whole.
func TestUsable(t *testing.T) {
	t.Parallel()
	x := newShared(t, func(b bucket.Bucket) *Store { return openStore(t, b) })
	if err := x.image(t).Usable(t.Context()); err != nil {
		t.Fatal(err)
	}
	table := x.image(t).table
	tried := map[string]int{}
	for k, slots := range uses(x.image(t)) {
		s := table.Segments[k]
		told := !slices.Contains(slots, ofOther)
		for slot, use := range slots {
			tried[fmt.Sprint(use, told)]++
			undo := x.spoil(t, table.Packs[s.Pack], s.Offset+int64(slot*page+(slot*997)%page))
			im := x.image(t)
			usable, read, verified := im.Usable(t.Context()), readAll(im, x.want), im.Verify(t.Context(), nil)
			undo()
			what := fmt.Sprintf("page %d of segment %d (use %d of %v)", slot, k, use, slots)
			if !fault.Is(verified, fault.Damaged) {
				t.Errorf("%s: Verify: %v", what, verified)
			}
			if use == dead && told {
				if usable != nil || read != nil {
					t.Errorf("%s: Usable: %v, read: %v", what, usable, read)
				}
			} else if !fault.Is(usable, fault.Damaged) || !fault.Is(read, fault.Damaged) {
				t.Errorf("%s: Usable: %v, read: %v", what, usable, read)
			}
		}
	}
	for _, c := range []string{fmt.Sprint(dead, true), fmt.Sprint(dead, false), fmt.Sprint(ofPages, true), fmt.Sprint(ofPages, false), fmt.Sprint(ofOther, false)} {
		if tried[c] == 0 {
			t.Errorf("no page of the kind %s among %v", c, tried)
		}
	}
}

// What is in the cache hides nothing that is wrong in the store from Verify.
func TestVerifyReadsTheStore(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	x.s.vault.remote = true // so that all is cached
	verify := func() error {
		im, err := x.s.Image(t.Context(), x.ids[1])
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		var last, total int64
		err = im.Verify(t.Context(), func(done, of int64) { last, total = max(last, done), of })
		if err == nil && last != total {
			t.Errorf("verified %d bytes of %d", last, total)
		}
		if e := im.Usable(t.Context()); e != nil {
			t.Errorf("usable: %v", e)
		}
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	for what, key := range map[string]string{
		"a pack": x.firstPacks[0], "the engine": x.manifests[1].Engine.Parts[0].Key, "the image": x.manifests[1].Image.Parts[0].Key,
	} {
		x.flip(t, key, 20)
		if err := verify(); !fault.Is(err, fault.Damaged) || errors.Is(err, ErrNotNeeded) {
			t.Errorf("a byte of %s: %v", what, err)
		}
		x.flip(t, key, 20)
	}
	x.flip(t, x.manifests[1].Hashes.Key, 20)
	if err := verify(); fault.Is(err, fault.Damaged) || !errors.Is(err, ErrNotNeeded) {
		t.Errorf("a byte of the hashes: %v", err)
	}
}

// A page of its own and one that is not are damaged in one segment: what a read
// gives is right or an error.
func TestUsableWithBoth(t *testing.T) {
	t.Parallel()
	x := newShared(t, func(b bucket.Bucket) *Store { return openStore(t, b) })
	table := x.image(t).table
	for k, slots := range uses(x.image(t)) {
		s := table.Segments[k]
		own, other := slices.Index(slots, ofPages), slices.Index(slots, dead)
		if own < 0 || other < 0 {
			continue
		}
		for _, slot := range []int{own, other} {
			defer x.spoil(t, table.Packs[s.Pack], s.Offset+int64(slot*page))()
		}
		im := x.image(t)
		if err := im.Usable(t.Context()); !fault.Is(err, fault.Damaged) {
			t.Errorf("Usable: %v", err)
		}
		if err := readAll(im, x.want); !fault.Is(err, fault.Damaged) {
			t.Errorf("read: %v", err)
		}
		return
	}
	t.Error("no segment has both")
}

// Whatever is not there is found, also where nobody looks at the pages in it.
func TestUsableWithoutAPack(t *testing.T) {
	t.Parallel()
	x := newShared(t, func(b bucket.Bucket) *Store { return openStore(t, b) })
	table := x.image(t).table
	for k := range uses(x.image(t)) {
		s := table.Segments[k]
		pack := table.Packs[s.Pack]
		raw, _, err := x.b.Get(t.Context(), pack)
		if err != nil {
			t.Fatal(err)
		}
		for _, left := range []int64{s.Offset + int64(s.Size) - 1, s.Offset, -1} {
			if err := x.b.Delete(t.Context(), pack); err != nil {
				t.Fatal(err)
			}
			if left >= 0 {
				if _, err := x.b.Put(t.Context(), pack, raw[:left], bucket.Condition{}); err != nil {
					t.Fatal(err)
				}
			}
			im := x.image(t)
			if err := im.Usable(t.Context()); !fault.Is(err, fault.Damaged) {
				t.Errorf("%d bytes left: %v", left, err)
			}
			if err := readAll(im, x.want); !fault.Is(err, fault.Damaged) {
				t.Errorf("%d bytes left: read: %v", left, err)
			}
		}
		if _, err := x.b.Put(t.Context(), pack, raw, bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

// Where there are no cheap hashes, or what is stored are not the pages, or they go
// through the cache, where other checkpoints find them, a segment is right as a
// whole or damaged.
func TestUsableAsAWhole(t *testing.T) {
	t.Parallel()
	open := func(b bucket.Bucket) *Store { return openStore(t, b) }
	for name, tt := range map[string]struct {
		open func(bucket.Bucket) *Store
		then func(t *testing.T, x *shared)
	}{
		"no table of hashes": {open, func(t *testing.T, x *shared) {
			if err := x.b.Delete(t.Context(), x.image(t).manifest.Hashes.Key); err != nil {
				t.Fatal(err)
			}
		}},
		"a damaged table of hashes": {open, func(t *testing.T, x *shared) { x.spoil(t, x.image(t).manifest.Hashes.Key, 30) }},
		"through the cache": {open, func(_ *testing.T, x *shared) {
			x.open = func(b bucket.Bucket) *Store { // has nothing in its cache
				s := open(b)
				s.vault.remote = true
				return s
			}
		}},
		"sealed": {func(b bucket.Bucket) *Store {
			s := openStore(t, b)
			var err error
			if s.vault.keys, err = seal.ParseKeys([]byte(seal.Generate())); err != nil {
				t.Fatal(err)
			}
			s.vault.cache = nil
			return s
		}, func(*testing.T, *shared) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newShared(t, tt.open)
			tt.then(t, x)
			table := x.image(t).table
			tried := [3]int{}
			for k, slots := range uses(x.image(t)) {
				s := table.Segments[k]
				for slot, use := range slots {
					if tried[use]++; tried[use] > 3 {
						continue
					}
					undo := x.spoil(t, table.Packs[s.Pack], s.Offset+int64(slot*page))
					im := x.image(t)
					if err := im.Usable(t.Context()); !fault.Is(err, fault.Damaged) {
						t.Errorf("use %d: Usable: %v", use, err)
					}
					if err := readAll(im, x.want); !fault.Is(err, fault.Damaged) {
						t.Errorf("use %d: read: %v", use, err)
					}
					undo()
				}
			}
			if slices.Contains(tried[:], 0) {
				t.Errorf("tried %v", tried)
			}
			im := x.image(t)
			if err := errors.Join(im.Usable(t.Context()), readAll(im, x.want)); err != nil {
				t.Errorf("as it was: %v", err)
			}
		})
	}
}

// The first and the last of a chain of checkpoints of 256 MiB of random memory, of
// which 1 % was written anew before each.
func BenchmarkChain(b *testing.B) {
	const pages, depth = 64 << 10, 50
	bk, err := dir.Open(b.TempDir(), durable.Disk{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = bk.Close() }()
	x := &shared{s: openStore(b, bk)}
	g := newGuest(seeded(b), 4)
	g.files[0], g.holes = make([]byte, pages*page), map[int]bool{}
	random(g.rng, g.files[0])
	for i := range depth {
		if i > 0 {
			for range pages / 100 {
				random(g.rng, g.files[0][g.rng.IntN(pages)*page:][:page])
			}
		}
		x.id = mustPut(b, x.s, fmt.Sprint("cp-", i), g.content(), x.id)
		if i > 0 && i < depth-1 {
			continue
		}
		for name, check := range map[string]func(*Image) error{
			"Verify": func(im *Image) error { return im.Verify(b.Context(), nil) },
			"Usable": func(im *Image) error { return im.Usable(b.Context()) },
		} {
			b.Run(fmt.Sprint(name, "/", i+1), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					im, err := x.s.Image(b.Context(), x.id)
					if err == nil {
						err = check(im)
					}
					if err != nil {
						b.Fatal(err)
					}
					im.Close()
				}
			})
		}
	}
}
