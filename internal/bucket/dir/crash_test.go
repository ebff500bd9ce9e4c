// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/durable"
)

// tree names the files and directories below a directory other than the
// bucket's own.
func tree(t *testing.T, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		if rel != "." && !strings.HasPrefix(rel, ".tmp") && rel != lockName {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// drafts names the temporary files.
func drafts(t *testing.T, root string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, tempName, "*/*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Whatever instant the power goes, each object is as it was before a Put or
// whole, and one whose Put has returned is there.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	live := t.TempDir()
	var r durable.Recorder
	b := open(t, live, r.Disk())
	before := len(r.Steps()) // the directories of the bucket itself
	type acknowledged struct {
		steps int
		body  string
	}
	bodies := map[string][]acknowledged{}
	for i, put := range []struct {
		key  string
		cond bucket.Condition
	}{
		{"packs/1/a", bucket.Condition{Absent: true}},
		{"packs/1/b", bucket.Condition{Absent: true}},
		{"ckpt/1", bucket.Condition{}},
		{"ckpt/1", bucket.Condition{}},
	} {
		body := fmt.Sprintf("body %d", i)
		if _, err := b.Put(t.Context(), put.key, []byte(body), put.cond); err != nil {
			t.Fatal(err)
		}
		bodies[put.key] = append(bodies[put.key], acknowledged{len(r.Steps()), body})
	}
	steps := r.Steps()
	temp := filepath.Base(b.temp.path)
	for n := before; n <= len(steps); n++ {
		for _, keep := range []func(int) bool{
			nil,
			func(int) bool { return true },
			func(i int) bool { return i%2 == 0 },
			func(i int) bool { return i%2 == 1 },
			func(i int) bool { return i%3 == n%3 },
		} {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, tempName, temp), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := durable.Replay(live, root, steps[:n], keep); err != nil {
				t.Fatal(err)
			}
			after := open(t, root, durable.Disk{})
			for key, versions := range bodies {
				got, _, err := after.Get(t.Context(), key)
				allowed := errors.Is(err, bucket.ErrNotExist) && n < versions[0].steps
				for i, v := range versions {
					replaced := i+1 < len(versions) && versions[i+1].steps <= n
					allowed = allowed || err == nil && string(got) == v.body && !replaced
				}
				if !allowed {
					t.Errorf("after %d of %d steps: %s is %q, %v", n, len(steps), key, got, err)
				}
			}
			if left := drafts(t, root); len(left) > 0 {
				t.Errorf("after %d steps: left %q", n, left)
			}
		}
	}
}

// A full disk, at whatever step, is told and leaves nothing.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	for _, cond := range []bucket.Condition{{Absent: true}, {}} {
		for n := 1; ; n++ {
			armed := false
			r := &durable.Recorder{}
			left := n
			r.Fail = func(_ int, s durable.Step) error {
				if armed {
					if left--; left == 0 {
						return unix.ENOSPC
					}
				}
				return nil
			}
			root := t.TempDir()
			b := open(t, root, r.Disk())
			armed = true
			_, err := b.Put(t.Context(), "a/b/c", []byte("body"), cond)
			armed = false
			if err == nil && left > 0 {
				if n < 8 {
					t.Errorf("a put of %d steps", n-1)
				}
				break // all steps were tried
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("step %d: %v", n, err)
			}
			if left := drafts(t, root); len(left) > 0 {
				t.Errorf("step %d: left %q", n, left)
			}
			// Only the sync of the name comes after the name.
			if names := tree(t, root); len(names) > 0 && names[len(names)-1] != "a/b/c" {
				t.Errorf("step %d: left %q", n, names)
			}
			if _, err := b.Put(t.Context(), "a/b/c", []byte("body"), bucket.Condition{}); err != nil {
				t.Errorf("step %d: once more: %v", n, err)
			}
		}
	}
}

// A disk that is really full fails before anything is written.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatalf("needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	b := open(t, root, durable.Disk{})
	for _, volatile := range []bool{false, true} {
		_, err := b.Put(t.Context(), "a/b", make([]byte, 9<<20), bucket.Condition{Volatile: volatile})
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("got %v", err)
		}
	}
	if names := append(tree(t, root), drafts(t, root)...); len(names) > 0 {
		t.Errorf("left %q", names)
	}
	if free, err := b.Free(); err != nil || free < 7<<20 || free > 8<<20 {
		t.Errorf("%d bytes free, %v", free, err)
	}
	if _, err := b.Put(t.Context(), "a/b", make([]byte, 4<<20), bucket.Condition{}); err != nil {
		t.Error(err)
	}
}

// Open removes what dead writers left and nothing of living ones.
func TestOpenSweepsDrafts(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	living := open(t, root, durable.Disk{})
	draft := filepath.Join(living.temp.path, "1")
	dead := filepath.Join(root, tempName, "dead")
	if err := os.Mkdir(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{draft, filepath.Join(dead, "1")} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	second := open(t, root, durable.Disk{})
	if got := drafts(t, root); len(got) != 1 || got[0] != draft {
		t.Errorf("drafts %q", got)
	}
	page, _, err := second.List(t.Context(), "", "", 0)
	if err != nil || len(page) > 0 {
		t.Errorf("listed %v, %v", page, err)
	}
	if err := os.Remove(draft); err != nil {
		t.Fatal(err)
	}
	if _, err := living.Put(t.Context(), "k", nil, bucket.Condition{Absent: true}); err != nil {
		t.Errorf("a writer that lived through it: %v", err)
	}
}

// A copy of the directory that lost the attributes is the same bucket.
func TestVersionsWithoutAttributes(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	b := open(t, root, durable.Disk{})
	body := bytes.Repeat([]byte("0123456789"), 100_000)
	want, err := b.Put(t.Context(), "k", body, bucket.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Removexattr(filepath.Join(root, "k"), etagAttr); err != nil {
		t.Fatal(err)
	}
	if _, got, err := b.Get(t.Context(), "k"); err != nil || got != want {
		t.Errorf("version %s, %v, was %s", got, err, want)
	}
	if page, _, err := b.List(t.Context(), "", "", 0); err != nil || len(page) != 1 || page[0].ETag != want {
		t.Errorf("listed %v, %v", page, err)
	}
	if _, err := b.Put(t.Context(), "k", nil, bucket.Condition{ETag: want}); err != nil {
		t.Error(err)
	}
}
