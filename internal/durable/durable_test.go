// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteFileReplacesAndSetsMode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	for _, want := range []string{"one", "two longer"} {
		if err := WriteFile(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	onlyNames(t, filepath.Dir(path), "f")
}

// A failure at any step leaves the old file whole and no temporary behind.
func TestWriteFileFailureKeepsOld(t *testing.T) {
	t.Parallel()
	for n := range 3 { // write, sync, rename
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		if err := WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := &Recorder{Fail: func(i int, _ Step) error {
			if i == n {
				return unix.ENOSPC
			}
			return nil
		}}
		if err := r.Disk().WriteFile(path, []byte("new"), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("step %d: error %v", n, err)
		}
		if got, _ := os.ReadFile(path); string(got) != "old" {
			t.Errorf("step %d: file is %q", n, got)
		}
		onlyNames(t, dir, "f")
	}
}

// Whatever instant the power goes, and whatever had reached the disk by itself
// until then, the file is the old one or the new one; once WriteFile has
// returned it is the new one.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	live := t.TempDir()
	r := &Recorder{}
	d := r.Disk()
	if err := d.MkdirAll(filepath.Join(live, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteFile(filepath.Join(live, "a/b/f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := len(r.Steps())
	if err := d.WriteFile(filepath.Join(live, "a/b/f"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	steps := r.Steps()
	for n := first; n <= len(steps); n++ {
		for mask := range 1 << (n - first) {
			dir := t.TempDir()
			keep := func(i int) bool { return i >= first && mask>>(i-first)&1 == 1 }
			if err := Replay(live, dir, steps[:n], keep); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "a/b/f"))
			if err != nil {
				t.Fatalf("after %d steps, mask %b: %v", n, mask, err)
			}
			old, fresh := bytes.Equal(got, []byte("old")), bytes.Equal(got, []byte("new"))
			if !old && !fresh || n == len(steps) && !fresh {
				t.Errorf("after %d steps, mask %b: %q", n, mask, got)
			}
		}
	}
}

// The recorder catches a writer that forgets to sync: this is what makes
// TestPowerCut mean something.
func TestReplayLosesWhatWasNotSynced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	steps := []Step{
		{Kind: StepWrite, Path: "/x/tmp", Data: []byte("data"), Mode: 0o600},
		{Kind: StepRename, Path: "/x/tmp", New: "/x/f"},
		{Kind: StepSync, Path: "/x"},
	}
	if err := Replay("/x", dir, steps, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || len(got) != 0 {
		t.Errorf("got %q, %v, want an empty file", got, err)
	}
}

func TestRemoveAndSyncTree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is there
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := SyncTree(dir); err != nil {
		t.Fatal(err)
	}
	onlyNames(t, dir)
}

func TestMkdirAllOverFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAll(path, 0o700); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("got %v", err)
	}
}

func onlyNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("directory holds %q, want %q", got, want)
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	fill := func(f *os.File) error {
		_, err := f.WriteString("content")
		return err
	}
	errFill := errors.New("cannot fill")
	if err := (Disk{}).Create(path, 0o600, func(f *os.File) error { return errors.Join(fill(f), errFill) }); !errors.Is(err, errFill) {
		t.Errorf("a fill that fails: %v", err)
	}
	onlyNames(t, filepath.Dir(path))
	for n := range 2 { // write, sync
		r := Recorder{Fail: func(i int, _ Step) error {
			if i == n {
				return errFill
			}
			return nil
		}}
		if err := r.Disk().Create(path, 0o600, fill); !errors.Is(err, errFill) {
			t.Errorf("step %d: %v", n, err)
		}
		onlyNames(t, filepath.Dir(path))
	}
	var r Recorder
	if err := r.Disk().Create(path, 0o600, fill); err != nil {
		t.Fatal(err)
	}
	if s := r.Steps(); len(s) != 2 || s[0].Kind != StepWrite || string(s[0].Data) != "content" || s[1].Kind != StepSync || s[1].Path != path {
		t.Errorf("recorded %+v", s)
	}
	if err := (Disk{}).Create(path, 0o600, fill); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
}

// Whatever instant the power goes, the new name is missing or has the whole
// content; once Link has returned it has.
func TestLink(t *testing.T) {
	t.Parallel()
	live := t.TempDir()
	tmp, path := filepath.Join(live, "tmp"), filepath.Join(live, "a/f")
	var r Recorder
	d := r.Disk()
	if err := d.MkdirAll(filepath.Join(live, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	first := len(r.Steps())
	err := d.Create(tmp, 0o600, func(f *os.File) error {
		_, err := f.WriteString("content")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Link(tmp, path); err != nil {
		t.Fatal(err)
	}
	if err := d.Link(tmp, path); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	steps := r.Steps()
	steps = steps[:len(steps)-1] // the one that failed
	for n := first; n <= len(steps); n++ {
		for mask := range 1 << (n - first) {
			dir := t.TempDir()
			keep := func(i int) bool { return i >= first && mask>>(i-first)&1 == 1 }
			if err := Replay(live, dir, steps[:n], keep); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "a/f"))
			missing := errors.Is(err, os.ErrNotExist) && n < len(steps)
			if !missing && (err != nil || string(got) != "content") {
				t.Errorf("after %d steps, mask %b: %q, %v", n, mask, got, err)
			}
		}
	}
	fail := Recorder{Fail: func(int, Step) error { return unix.ENOSPC }}
	if err := fail.Disk().Link(tmp, filepath.Join(live, "a/g")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	onlyNames(t, filepath.Join(live, "a"), "f")
}
