// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tree is a directory, and what must be in it.
type tree struct {
	root  string
	files map[string][]byte // contents by name in it
	links map[string]string // targets of symbolic links
}

const (
	mostFiles = 120
	mostBytes = 128 << 10 // of a file
	scratch   = "changed" // what is made anew is below it
)

// newTree takes in what is there.
func newTree(root string) (*tree, error) {
	t := &tree{root: root, files: map[string][]byte{}, links: map[string]string{}}
	err := t.walk(func(name string, d fs.DirEntry) (err error) {
		switch d.Type() {
		case 0:
			t.files[name], err = os.ReadFile(t.path(name))
		case fs.ModeSymlink:
			t.links[name], err = os.Readlink(t.path(name))
		}
		return err
	})
	return t, err
}

func (t *tree) path(name string) string { return filepath.Join(t.root, name) }

// walk visits everything in the tree, in order.
func (t *tree) walk(visit func(name string, d fs.DirEntry) error) error {
	return filepath.WalkDir(t.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(t.root, path)
		if err != nil {
			return err
		}
		return visit(name, d)
	})
}

// any gives a file of the tree; ok is false if there is none.
func (t *tree) any(rng *rand.Rand) (name string, ok bool) {
	names := slices.Sorted(maps.Keys(t.files))
	if len(names) == 0 {
		return "", false
	}
	return names[rng.IntN(len(names))], true
}

// change makes a random one.
func (t *tree) change(rng *rand.Rand) error {
	name, ok := t.any(rng)
	op := rng.IntN(20)
	switch {
	case !ok || op < 6 && len(t.files) < mostFiles:
		return t.create(rng)
	case op < 10:
		return t.write(name, rng.IntN(mostBytes/2), content(rng, 1+rng.IntN(12<<10)))
	case op < 12:
		return t.truncate(name, rng.IntN(mostBytes))
	case op < 14:
		return t.punch(name, rng)
	case op < 16:
		return t.rename(name, newName(rng))
	case op == 16:
		return t.link(name, newName(rng))
	case op == 17:
		return os.Chmod(t.path(name), fs.FileMode(0o400|rng.IntN(0o200)))
	}
	return t.remove(name)
}

// newName gives a name in one of a few directories; it may be taken.
func newName(rng *rand.Rand) string {
	return filepath.Join(scratch, fmt.Sprint("d", rng.IntN(4)), fmt.Sprint("e", rng.IntN(3)), fmt.Sprint("f", rng.IntN(40)))
}

func content(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	if rng.IntN(3) > 0 {
		random(b, rng.Uint64())
	}
	return b
}

// ready sees that a name can be given to a file.
func (t *tree) ready(name string) error {
	if err := os.MkdirAll(filepath.Dir(t.path(name)), 0o700); err != nil {
		return err
	}
	if _, ok := t.links[name]; ok {
		delete(t.links, name)
		return os.Remove(t.path(name))
	}
	return nil
}

func (t *tree) create(rng *rand.Rand) error {
	name := newName(rng)
	b := content(rng, rng.IntN(48<<10))
	if err := t.ready(name); err != nil {
		return err
	}
	_ = os.Remove(t.path(name)) // it need not be there
	t.files[name] = b
	return os.WriteFile(t.path(name), b, 0o600)
}

// open opens a file to change it, and gives what must be in it.
func (t *tree) open(name string) (*os.File, []byte, error) {
	f, err := os.OpenFile(t.path(name), os.O_RDWR, 0)
	return f, t.files[name], err
}

// write writes a part; beyond its end there is a hole before.
func (t *tree) write(name string, at int, b []byte) error {
	f, want, err := t.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if grow := at + len(b) - len(want); grow > 0 {
		want = append(want, make([]byte, grow)...)
	}
	copy(want[at:], b)
	t.files[name] = want
	_, err = f.WriteAt(b, int64(at))
	return err
}

func (t *tree) truncate(name string, n int) error {
	f, want, err := t.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if n > len(want) {
		want = append(want, make([]byte, n-len(want))...)
	}
	t.files[name] = want[:n:n]
	return f.Truncate(int64(n))
}

// punch makes a hole, or writes zeros where the file system makes none.
func (t *tree) punch(name string, rng *rand.Rand) error {
	f, want, err := t.open(name)
	if err != nil || len(want) == 0 {
		return err
	}
	defer f.Close()
	at := rng.IntN(len(want))
	n := 1 + rng.IntN(len(want)-at)
	clear(want[at:][:n])
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at), int64(n))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		_, err = f.WriteAt(make([]byte, n), int64(at))
	}
	return err
}

// rename gives a file another name, in the place of what has it.
func (t *tree) rename(from, to string) error {
	if from == to {
		return nil
	}
	if err := t.ready(to); err != nil {
		return err
	}
	t.files[to] = t.files[from]
	delete(t.files, from)
	return os.Rename(t.path(from), t.path(to))
}

// link makes a symbolic link, which may lead nowhere.
func (t *tree) link(target, name string) error {
	if err := t.ready(name); err != nil {
		return err
	}
	_ = os.Remove(t.path(name)) // it need not be there
	delete(t.files, name)
	t.links[name] = t.path(target)
	return os.Symlink(t.links[name], t.path(name))
}

func (t *tree) remove(name string) error {
	delete(t.files, name)
	return os.Remove(t.path(name))
}

// hash is one of everything: names, kinds, owners, times and contents.
func (t *tree) hash() ([]byte, error) {
	h := sha256.New()
	err := t.walk(func(name string, d fs.DirEntry) error {
		st, err := d.Info()
		if err != nil {
			return err
		}
		owner, _ := st.Sys().(*syscall.Stat_t)
		fmt.Fprintf(h, "%q %v %d:%d %d\n", name, st.Mode(), owner.Uid, owner.Gid, st.ModTime().UnixNano())
		switch d.Type() {
		case 0:
			b, err := os.ReadFile(t.path(name))
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "%d bytes\n", len(b))
			_, _ = h.Write(b) // never fails
		case fs.ModeSymlink:
			to, err := os.Readlink(t.path(name))
			fmt.Fprintf(h, "to %q\n", to)
			return err
		}
		return nil
	})
	return h.Sum(nil), err
}

// check compares the tree with what must be there; the areas are what is in
// mapped files.
func (t *tree) check(areas []*area) error {
	mapped := map[string]*area{}
	for _, a := range areas {
		if a.file != "" {
			mapped[filepath.Base(a.file)] = a
		}
	}
	found := 0
	err := t.walk(func(name string, d fs.DirEntry) error {
		switch {
		case d.IsDir():
			return nil
		case d.Type() == fs.ModeSymlink:
			found++
			to, err := os.Readlink(t.path(name))
			if err != nil {
				return err
			}
			if to != t.links[name] || to == "" {
				return fmt.Errorf("the link %s leads to %q, not %q", name, to, t.links[name])
			}
			return nil
		}
		got, err := os.ReadFile(t.path(name))
		if err != nil {
			return err
		}
		want, ok := t.files[name]
		if a := mapped[name]; a != nil {
			if want = a.mem; a.kind == ofFile {
				want = make([]byte, len(a.mem)) // nobody ever wrote into it
			}
		} else if found++; !ok {
			return fmt.Errorf("the file %s should not be there", name)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("the file %s is not what it was: %d bytes, not %d", name, len(got), len(want))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n := len(t.files) + len(t.links); found != n {
		return fmt.Errorf("there are %d files and links, not %d: %s", found, n, strings.Join(slices.Sorted(maps.Keys(t.files)), " "))
	}
	return nil
}
