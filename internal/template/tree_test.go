// SPDX-License-Identifier: Apache-2.0

package template

import (
	"archive/tar"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
)

// The hash of a tree does not depend on the order or the times of an archive,
// and depends on everything else.
func TestTreeHash(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	// Entries carry their parents, because one that is only implied has no
	// attributes of its own.
	base := []entry{dir("d"), file("d/a", "1"), file("d/b", "2"), link("l", "d/a"), dir("e")}
	change := func(i int, f func(e *entry)) []entry {
		out := slices.Clone(base)
		f(&out[i])
		return out
	}
	want := mustImport(t, b, base...).Hash

	same := map[string][]entry{
		"order": {base[4], base[3], base[0], base[2], base[1]},
		"time":  change(1, func(e *entry) { e.ModTime = time.Unix(1e9, 0) }),
		"dots":  change(1, func(e *entry) { e.Name = "./d//a" }),
		"twice": append(slices.Clone(base), base[1]),
		"label": change(1, func(e *entry) { e.PAXRecords = map[string]string{"SCHILY.xattr.security.selinux": "x"} }),
	}
	for name, entries := range same {
		if got := mustImport(t, b, entries...).Hash; got != want {
			t.Errorf("%s: the hash differs", name)
		}
	}
	hashes := map[string]string{want: "base"}
	for name, entries := range map[string][]entry{
		"content":   change(1, func(e *entry) { e.content = "3" }),
		"name":      change(1, func(e *entry) { e.Name = "d/c" }),
		"mode":      change(1, func(e *entry) { e.Mode = 0o600 }),
		"setuid":    change(1, func(e *entry) { e.Mode = 0o4644 }),
		"owner":     change(1, func(e *entry) { e.Uid = 5 }),
		"group":     change(1, func(e *entry) { e.Gid = 5 }),
		"target":    change(3, func(e *entry) { e.Linkname = "d/b" }),
		"type":      change(4, func(e *entry) { e.Typeflag = tar.TypeFifo }),
		"hard link": change(2, func(e *entry) { e.Typeflag, e.Linkname, e.content = tar.TypeLink, "d/a", "" }),
		"same text": change(2, func(e *entry) { e.content = "1" }),
		"missing":   base[:4],
		"xattr":     change(1, func(e *entry) { e.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "1"} }),
	} {
		got := mustImport(t, b, entries...).Hash
		if other, seen := hashes[got]; seen {
			t.Errorf("%s has the hash of %s", name, other)
		}
		hashes[got] = name
	}
}

func TestTreeFoundAndRemoved(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	tree := mustImport(t, b, file("etc/x", "12345"))
	got, err := b.Tree(tree.Hash)
	if err != nil || got != tree || got.SizeBytes < 5 || got.Files < 5 {
		t.Errorf("got %+v, %v, want %+v", got, err, tree)
	}
	all, err := b.Trees()
	if err != nil || !slices.Equal(all, []string{tree.Hash}) {
		t.Errorf("all: %q, %v", all, err)
	}
	if err := b.RemoveTree(tree.Hash); err != nil {
		t.Error(err)
	}
	_, err = b.Tree(tree.Hash)
	wantKind(t, err, fault.NotFound)
	for _, hash := range []string{"", "..", "../" + tree.Hash, strings.ToUpper(tree.Hash)} {
		wantKind(t, b.RemoveTree(hash), fault.Invalid)
		wantKind(t, b.RemoveImage(hash), fault.Invalid)
		_, err = b.Tree(hash)
		wantKind(t, err, fault.Invalid)
	}
}

// New removes what a dead builder left, and nothing that a live one works in.
func TestSweep(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	live, err := b.stage()
	if err != nil {
		t.Fatal(err)
	}
	defer live.close()
	dead := filepath.Join(b.dir, "tmp", stagingPrefix+"dead")
	foreign := filepath.Join(b.dir, "tmp", "foreign")
	for _, d := range []string{dead, foreign, live.dir} {
		if err := os.MkdirAll(filepath.Join(d, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := setTime(d, time.Now().Add(-time.Hour).Unix()); err != nil {
			t.Fatal(err)
		}
	}
	young := filepath.Join(b.dir, "tmp", stagingPrefix+"young")
	if err := os.Mkdir(young, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(b.dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{dead: false, foreign: true, live.dir: true, young: true} {
		if _, err := os.Stat(path); want != (err == nil) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, d := range []string{foreign, young} {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
}

// A full disk is said in words and leaves nothing.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	small := t.TempDir()
	if err := unix.Mount("none", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal("this test mounts a small file system: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	b, err := New(small, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, err = importBytes(t, b, archiveOf(t, file("big", strings.Repeat("x", 2<<20))))
	if f := fault.As(err); f.Kind != fault.Unavailable || !strings.Contains(f.Message, "no space") {
		t.Errorf("got %v", err)
	}
	tree := mustImport(t, b, file("most", strings.Repeat("x", 600<<10)))
	_, err = b.Image(t.Context(), tree, nil)
	if f := fault.As(err); f.Kind != fault.Unavailable || !strings.Contains(f.Message, "no space") {
		t.Errorf("image: got %v", err)
	}
	names, err := namesIn(filepath.Join(small, "tmp"), "")
	if err != nil || len(names) > 0 {
		t.Errorf("left behind: %q, %v", names, err)
	}
}

// Whichever durable step fails, the work fails with it, nothing is left behind
// and the next try succeeds.
func TestDurableStepFails(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	data := archiveOf(t, file("etc/x", "x"))
	build := func() error {
		tree, err := importBytes(t, b, data)
		if err != nil {
			return err
		}
		_, err = b.Image(t.Context(), tree, []byte("agent"))
		return err
	}
	failed := 0
	for n := 0; ; n++ {
		rec := durable.Recorder{Fail: func(i int, _ durable.Step) error {
			if i == n {
				return unix.EIO
			}
			return nil
		}}
		b.disk = rec.Disk()
		err := build()
		if err == nil {
			break
		}
		failed++
		if !errors.Is(err, unix.EIO) {
			t.Errorf("step %d: %v", n, err)
		}
		b.disk = durable.Disk{}
		if err := build(); err != nil {
			t.Errorf("after step %d failed: %v", n, err)
		}
		for _, dir := range []string{"templates", "images"} {
			if err := os.RemoveAll(filepath.Join(b.dir, dir)); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(b.dir, dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	if failed < 10 {
		t.Errorf("only %d steps are durable", failed)
	}
}
