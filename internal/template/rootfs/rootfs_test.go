// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTest gives a root beside a directory "outside" that nothing may change.
func openTest(t *testing.T) (root *Root, dir string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "root")
	for _, d := range []string{dir, filepath.Join(top, "outside")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(top, "outside/secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o640); err != nil {
		t.Fatal(err)
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
		names, err := os.ReadDir(filepath.Dir(secret))
		if err != nil || len(names) != 1 {
			t.Errorf("outside was changed: %v, %v", names, err)
		}
		st, err := os.Stat(secret)
		if err != nil || st.Mode().Perm() != 0o640 || st.Size() != 6 {
			t.Errorf("a file outside was changed: %v, %v", st, err)
		}
	})
	return root, dir
}

func TestClean(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": ".", "/": ".", "a": "a", "./a/": "a", "/a//b": "a/b", "..": ".", "../../a": "a", "a/../..": ".",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

// Links of every shape lead to places inside.
func TestLinksStayInside(t *testing.T) {
	t.Parallel()
	root, dir := openTest(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	for name, target := range map[string]string{
		"abs": outside, "rel": "../outside", "far": strings.Repeat("../", 30) + outside, "magic": "/proc/self/root" + outside,
	} {
		if err := root.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			t.Errorf("MkdirAll(%s): %v", name, err)
		}
		if err := root.WriteFile(name+"/secret", []byte("harm"), 0o777); err != nil {
			t.Errorf("WriteFile through %s: %v", name, err)
		}
		if got, err := root.ReadFile(name+"/secret", 100); err != nil || string(got) != "harm" {
			t.Errorf("ReadFile through %s: %q, %v", name, got, err)
		}
		if err := root.Chmod(name, 0o777); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Chmod of link %s: %v", name, err)
		}
		if err := root.RemoveAll(name + "/secret"); err != nil {
			t.Errorf("RemoveAll through %s: %v", name, err)
		}
	}
	if err := root.Symlink(outside+"/secret", "file"); err != nil {
		t.Fatal(err)
	}
	if _, err := root.ReadFile("file", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading a file outside: %v", err)
	}
	if err := root.Link("file", "hard"); err != nil {
		t.Fatal(err)
	}
	if st, err := root.Lstat("hard"); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("a hard link followed a link: %v", err)
	}
	if err := root.Link("../outside/secret", "hard2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("hard link to outside: %v", err)
	}
}

func TestMkdirAllThroughDanglingLink(t *testing.T) {
	t.Parallel()
	root, dir := openTest(t)
	if err := root.Mkdir("var", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink("/run", "var/run"); err != nil {
		t.Fatal(err)
	}
	if err := root.MkdirAll("var/run/lock", 0o755); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "run/lock")); err != nil || !st.IsDir() {
		t.Errorf("not made where the link leads: %v", err)
	}
	for _, l := range [][2]string{{"b", "a"}, {"a", "b"}} {
		if err := root.Symlink(l[0], l[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.MkdirAll("a/c", 0o755); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop of links: %v", err)
	}
	if err := root.Symlink("deeper/x", "x"); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink("../x", "deeper"); err != nil {
		t.Fatal(err)
	}
	if err := root.MkdirAll("x", 0o755); err == nil {
		t.Error("a growing loop of links was followed to an end")
	}
}

func TestRemoveAll(t *testing.T) {
	t.Parallel()
	root, dir := openTest(t)
	if err := root.MkdirAll("d/e", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink("/", "d/e/up"); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink(filepath.Join(filepath.Dir(dir), "outside"), "d/e/out"); err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile("keep", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d", "missing/x", "keep/x"} {
		if err := root.RemoveAll(name); err != nil {
			t.Errorf("RemoveAll(%s): %v", name, err)
		}
	}
	if !root.Exists("keep") || root.Exists("d") {
		t.Error("the wrong name was removed")
	}
	if err := root.RemoveAll("/"); err == nil {
		t.Error("the root itself was removed")
	}
}

// A directory that was removed and made again is not taken for the old one.
func TestParentMadeAgain(t *testing.T) {
	t.Parallel()
	root, _ := openTest(t)
	for range 2 {
		if err := root.MkdirAll("a/b", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := root.WriteFile("a/b/f", []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := root.RemoveAll("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.WriteFile("a/b/f", nil, 0o644); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("writing into a removed directory: %v", err)
	}
}

func TestReadFileRefuses(t *testing.T) {
	t.Parallel()
	root, _ := openTest(t)
	if err := root.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile("big", make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "big", "/"} {
		if _, err := root.ReadFile(name, 10); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}
