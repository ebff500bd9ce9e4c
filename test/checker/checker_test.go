// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the checker makes is what it remembers, by the seed alone; and it sees each
// kind of damage.
func TestWorld(t *testing.T) {
	t.Parallel()
	var worlds [2]*world
	for i := range worlds {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "from the image"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := newWorld(512, dir)
		if err != nil {
			t.Fatal(err)
		}
		for round := range 30 {
			if err := w.update(rand.New(rand.NewPCG(7, uint64(round))), 200); err != nil {
				t.Fatal(err)
			}
			if err := w.check(); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		worlds[i] = w
	}
	a, err := worlds[0].hash()
	if err != nil {
		t.Fatal(err)
	}
	b, err := worlds[1].hash()
	if err != nil {
		t.Fatal(err)
	}
	if a[:64] != b[:64] || a[len(a)-5:] != b[len(b)-5:] { // the disks have other times
		t.Errorf("%s and %s by the same seeds", a, b)
	}

	w := worlds[0]
	name, _ := w.tree.any(rand.New(rand.NewPCG(1, 1)))
	for what, damage := range map[string]func(t *testing.T) (mend func()){
		"a page": func(*testing.T) func() {
			w.areas[0].mem[12345]++
			return func() { w.areas[0].mem[12345]-- }
		},
		"a mapped file": func(t *testing.T) func() {
			w.areas[2].mem[5]++
			return func() { w.areas[2].mem[5]-- }
		},
		"a file": func(t *testing.T) func() {
			b := w.tree.files[name]
			w.tree.files[name] = append(b[:len(b):len(b)], 0)
			return func() { w.tree.files[name] = b }
		},
		"a lost file": func(t *testing.T) func() {
			w.tree.files["lost"] = nil
			return func() { delete(w.tree.files, "lost") }
		},
		"a new file": func(t *testing.T) func() {
			path := w.tree.path("new")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(path) }
		},
	} {
		mend := damage(t)
		if err := w.check(); err == nil {
			t.Errorf("%s: not seen", what)
		}
		if now, err := w.hash(); err != nil || now == a && !strings.HasSuffix(what, "file") {
			t.Errorf("%s: the hash is the same, %v", what, err)
		}
		mend()
	}
	if err := w.check(); err != nil {
		t.Errorf("after the damages: %v", err)
	}
}
