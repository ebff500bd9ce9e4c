// SPDX-License-Identifier: Apache-2.0

package index

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const boot = "this-boot"

func openAt(t testing.TB, path string) *Index {
	t.Helper()
	ix, err := open(path, boot, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ix.Close() })
	return ix
}

func closeIt(t testing.TB, ix *Index) {
	t.Helper()
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
}

// crash ends an index as the end of its process would: nothing is written.
func crash(t testing.TB, ix *Index) {
	t.Helper()
	if err := ix.db.Close(); err != nil {
		t.Fatal(err)
	}
	ix.db = nil
}

// hashes makes n random hashes, the same ones for the same name.
func hashes(name string, n int) [][32]byte {
	var seed [32]byte
	copy(seed[:], name)
	rng := rand.NewChaCha8(seed)
	out := make([][32]byte, n)
	for i := range out {
		_, _ = rng.Read(out[i][:])
	}
	return out
}

// segments cuts hashes into segments.
func segments(hashes [][32]byte, size int) [][][32]byte {
	return slices.Collect(slices.Chunk(hashes, size))
}

func add(t testing.TB, ix *Index, name string, pages [][32]byte) {
	t.Helper()
	if err := ix.AddPack(name, []byte("table of "+name), segments(pages, 64)); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, ix *Index, name string) {
	t.Helper()
	if err := ix.RemovePack(name); err != nil {
		t.Fatal(err)
	}
}

// packs is what an index should have.
type packs map[string][][32]byte

// checkFound wants each of the hashes to be found where one of the packs has it,
// or none to be found when there are no packs.
func checkFound(t testing.TB, ix *Index, pages [][32]byte, in packs) {
	t.Helper()
	n := countRight(t, ix, pages, in)
	if in != nil && n != len(pages) || in == nil && n != 0 {
		t.Errorf("%d of %d hashes found in %d packs", n, len(pages), len(in))
	}
}

// countRight looks hashes up and counts what is found; all of it must be right
// by what the packs have.
func countRight(t testing.TB, ix *Index, pages [][32]byte, in packs) int {
	t.Helper()
	seen := map[int]bool{}
	ix.Lookup(pages, func(i int, at Location) {
		name, table, ok := ix.Pack(at.Pack)
		if !ok {
			return // lost between Lookup and Pack
		}
		pack := in[name]
		page := at.Segment*64 + at.Slot
		if page >= len(pack) || pack[page] != pages[i] || at.Slot >= 64 || string(table) != "table of "+name || seen[i] {
			t.Errorf("hash %d is said to be in %q at %+v", i, name, at)
		}
		seen[i] = true
	})
	return len(seen)
}

func TestFindsWhatWasAdded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index")
	ix := openAt(t, path)
	a, b := hashes("a", 10000), hashes("b", 1)
	add(t, ix, "a", a)
	add(t, ix, "b", b)
	add(t, ix, "empty", nil)
	add(t, ix, "a", hashes("other", 5)) // packs do not change
	check := func() {
		t.Helper()
		checkFound(t, ix, a, packs{"a": a})
		checkFound(t, ix, b, packs{"b": b})
		checkFound(t, ix, a[77:79], packs{"a": a})
		checkFound(t, ix, slices.Concat(b, b, b), packs{"b": b})
		checkFound(t, ix, hashes("other", 5000), nil)
		checkFound(t, ix, nil, nil)
		if got := ix.Packs(); !slices.Equal(got, []string{"a", "b", "empty"}) || !ix.HasPack("empty") || ix.HasPack("c") {
			t.Errorf("packs: %v", got)
		}
		if _, _, ok := ix.Pack(99); ok {
			t.Error("a pack that nobody added")
		}
	}
	check()
	closeIt(t, ix)
	ix = openAt(t, path)
	check()
	crash(t, ix)
	ix = openAt(t, path)
	check()
	if _, err := open(path, boot, ix.log); !errors.Is(err, berrors.ErrTimeout) {
		t.Errorf("opened twice: %v", err)
	}
	check()
}

func TestRemove(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index")
	ix := openAt(t, path)
	both, one := hashes("both", 3000), hashes("one", 3000)
	add(t, ix, "1", both)
	all := slices.Concat(both, one)
	add(t, ix, "2", all)
	checkFound(t, ix, all, packs{"1": both, "2": all})
	remove(t, ix, "2")
	remove(t, ix, "2")
	for range 2 {
		checkFound(t, ix, both, packs{"1": both})
		checkFound(t, ix, one, nil)
		if ix.HasPack("2") || !slices.Equal(ix.Packs(), []string{"1"}) {
			t.Errorf("%v", ix.Packs())
		}
		closeIt(t, ix)
		ix = openAt(t, path)
	}
	// The number of a removed pack is not given again, whose entries may be left.
	remove(t, ix, "1")
	closeIt(t, ix)
	ix = openAt(t, path)
	add(t, ix, "3", hashes("3", 64))
	checkFound(t, ix, both, nil)
	if ix.numbers["3"] != 3 {
		t.Errorf("number %d", ix.numbers["3"])
	}
}

// Many packs, some of them removed again and the index opened anew in between,
// against a map.
func TestAgainstModel(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index")
	ix := openAt(t, path)
	rng := rand.New(rand.NewPCG(1, 2))
	model := packs{}
	var all [][32]byte
	for i := range 150 {
		name := fmt.Sprint(i)
		pages := hashes(name, int(rng.ExpFloat64()*1000))
		for range min(len(all), len(pages)/10) { // some pages are in several packs
			pages[rng.IntN(len(pages))] = all[rng.IntN(len(all))]
		}
		all = append(all, pages...)
		model[name] = pages
		add(t, ix, name, pages)
		if rng.IntN(3) == 0 {
			gone := fmt.Sprint(rng.IntN(i + 1))
			delete(model, gone)
			remove(t, ix, gone)
		}
		if i%25 == 24 {
			closeIt(t, ix)
			ix = openAt(t, path)
		}
	}
	there := map[[32]byte]bool{}
	for _, pages := range model {
		for _, h := range pages {
			there[h] = true
		}
	}
	want := 0
	for _, h := range all {
		if there[h] {
			want++
		}
	}
	if got := countRight(t, ix, all, model); got != want {
		t.Errorf("found %d of %d", got, want)
	}
	if len(ix.runs) > 18 {
		t.Errorf("%d runs of %d entries", len(ix.runs), ix.entries())
	}
}

// A pack larger than a run, and enough of them that runs are not merged any
// more; then most of it is removed, and the runs are compacted.
func TestLarge(t *testing.T) {
	t.Parallel()
	ix := openAt(t, filepath.Join(t.TempDir(), "index"))
	large, small := hashes("large", maxRun+50000), hashes("small", 60000)
	add(t, ix, "small", small)
	add(t, ix, "large", large)
	for _, r := range ix.runs {
		if r.entries > maxRun {
			t.Errorf("a run of %d", r.entries)
		}
	}
	checkFound(t, ix, large, packs{"large": large})
	checkFound(t, ix, small, packs{"small": small})
	if n := ix.entries(); len(ix.filter)*8 > 2*n+minFilter {
		t.Errorf("a filter of %d bytes for %d entries", len(ix.filter)*8, n)
	}
	remove(t, ix, "large")
	checkFound(t, ix, large, nil)
	checkFound(t, ix, small, packs{"small": small})
	if len(ix.runs) != 1 || ix.entries() != len(small) || len(ix.filter)*8 > 2*len(small)+minFilter {
		t.Errorf("runs %v, filter %d after compaction", ix.runs, len(ix.filter)*8)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	ix := openAt(t, filepath.Join(t.TempDir(), "index"))
	for what, err := range map[string]error{
		"no name":       ix.AddPack("", nil, nil),
		"long name":     ix.AddPack(string(make([]byte, MaxName+1)), nil, nil),
		"large table":   ix.AddPack("a", make([]byte, MaxTable+1), nil),
		"many segments": ix.AddPack("a", nil, make([][][32]byte, MaxSegments+1)),
		"large segment": ix.AddPack("a", nil, [][][32]byte{make([][32]byte, MaxSlots+1)}),
	} {
		if err == nil {
			t.Error(what, "was accepted")
		}
	}
	if len(ix.Packs()) != 0 {
		t.Error("refused and added")
	}
	// The largest location comes back as it went in.
	at := Location{maxPack, MaxSegments - 1, MaxSlots - 1}
	e := entry{at: uint64(at.Pack)<<36 | uint64(at.Segment)<<12 | uint64(at.Slot)}
	if e.location() != at {
		t.Errorf("%+v", e.location())
	}
	ix.lastPack = maxPack
	if ix.AddPack("a", nil, nil) == nil {
		t.Error("more packs than there are numbers")
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	ix := openAt(t, filepath.Join(t.TempDir(), "index"))
	pages := hashes("a", 10)
	add(t, ix, "a", pages)
	closeIt(t, ix)
	closeIt(t, ix)
	checkFound(t, ix, pages, nil)
	if ix.AddPack("b", nil, nil) == nil || ix.RemovePack("a") == nil || ix.HasPack("a") {
		t.Error("a closed index works")
	}
	if _, _, ok := ix.Pack(1); ok {
		t.Error("a closed index has packs")
	}
}

// After a power cut, or without its mark, nothing in the file is believed; when
// it was closed before, all of it.
func TestOtherBoot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index")
	pages := hashes("a", 100)
	reopen := func(boot string, want packs) *Index {
		t.Helper()
		ix, err := open(path, boot, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ix.Close() })
		checkFound(t, ix, pages, want)
		return ix
	}
	ix := reopen("boot 1", nil)
	add(t, ix, "a", pages)
	closeIt(t, ix)
	crash(t, reopen("boot 2", packs{"a": pages}))
	ix = reopen("boot 3", nil)
	add(t, ix, "a", pages)
	closeIt(t, ix)
	os.Remove(path + markSuffix)
	closeIt(t, reopen("boot 3", nil))
	if _, err := Open(path, slog.New(slog.DiscardHandler)); err != nil { // with the real boot's ID
		t.Error(err)
	}
}

// Any file in the way is replaced, whatever it is and whenever it becomes so.
func TestForeignFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index")
	pages := hashes("a", 5000)
	for what, content := range map[string][]byte{
		"empty": {}, "short": []byte("x"), "zeros": make([]byte, 1<<16), "text": bytes.Repeat([]byte("text "), 1<<14),
	} {
		ix := openAt(t, path)
		add(t, ix, "a", pages)
		closeIt(t, ix)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		ix = openAt(t, path)
		if ix.HasPack("a") {
			t.Error(what, "has a pack")
		}
		add(t, ix, "a", pages)
		checkFound(t, ix, pages, packs{"a": pages})
		closeIt(t, ix)
	}
	// A database of somebody else's.
	os.Remove(path)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	add(t, openAt(t, path), "a", pages)
}

// A file that is cut or overwritten while it is open is lost, not more: memory
// that faults included.
func TestLostWhileOpen(t *testing.T) {
	t.Parallel()
	pages := hashes("a", 20000)
	spoil := map[string]func(path string, size int64) error{
		"cut": func(path string, _ int64) error { return os.Truncate(path, 4096) },
		"overwritten": func(path string, size int64) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, int(size)), 0)
			return err
		},
	}
	use := map[string]func(t *testing.T, ix *Index){
		"lookup": func(t *testing.T, ix *Index) { checkFound(t, ix, pages, nil) },
		"pack": func(t *testing.T, ix *Index) {
			if _, _, ok := ix.Pack(1); ok {
				t.Error("a pack out of nothing")
			}
		},
		"add":    func(t *testing.T, ix *Index) { add(t, ix, "b", pages[:10]) },
		"remove": func(t *testing.T, ix *Index) { remove(t, ix, "a") },
	}
	for how, spoil := range spoil {
		for what, use := range use {
			t.Run(how+", then "+what, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "index")
				ix := openAt(t, path)
				add(t, ix, "a", pages)
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				before := ix.numbers["a"]
				if err := spoil(path, st.Size()); err != nil {
					t.Fatal(err)
				}
				use(t, ix)
				if ix.HasPack("a") || ix.renewals != 1 {
					t.Fatalf("still there, after %d renewals", ix.renewals)
				}
				add(t, ix, "a", pages)
				checkFound(t, ix, pages, packs{"a": pages, "b": pages[:10]})
				if ix.numbers["a"] <= before {
					t.Error("a number that means two packs")
				}
			})
		}
	}
}

// Readers and a writer at once.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	ix := openAt(t, filepath.Join(t.TempDir(), "index"))
	base := hashes("base", 5000)
	add(t, ix, "base", base)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 40 {
			name := fmt.Sprint(i)
			if err := ix.AddPack(name, []byte("table of "+name), segments(hashes(name, 500), 64)); err != nil {
				t.Error(err)
			}
			if err := ix.RemovePack(fmt.Sprint(i / 2)); err != nil {
				t.Error(err)
			}
		}
	}()
	for n := 0; n < 40; n++ {
		checkFound(t, ix, base, packs{"base": base})
	}
	<-done
}
