// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// copyBuffer is the size of the pieces in which files are read and written.
const copyBuffer = wire.MaxChunk

// resolve makes a path absolute; a relative one starts at the home of the
// default user.
func (a *Agent) resolve(path string) (string, error) {
	if path == "" || len(path) > unix.PathMax || strings.ContainsRune(path, 0) {
		return "", failf(wire.Invalid, "%q is not a path", path)
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	u, err := a.lookupUser("")
	if err != nil {
		return "", err
	}
	return filepath.Join(u.home, path), nil
}

// ownerOf gives who is to own a file that is made at an absolute path: the
// sandbox's user below that user's home, else root.
func (a *Agent) ownerOf(path string) (uid, gid int) {
	u, err := a.lookupUser("")
	if err != nil || !beneath(path, u.home) {
		return 0, 0
	}
	return int(u.uid), int(u.gid)
}

// beneath tells whether path is dir or in it, both seen through symlinks.
func beneath(path, dir string) bool {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	for p := path; ; p = filepath.Dir(p) { // the nearest ancestor that exists
		if real, err := filepath.EvalSymlinks(p); err == nil {
			rel, err := filepath.Rel(dir, filepath.Join(real, strings.TrimPrefix(path, p)))
			return err == nil && filepath.IsLocal(rel)
		}
		if p == filepath.Dir(p) {
			return false
		}
	}
}

// describe makes a FileInfo. The path is the file's own.
func describe(path string, fi fs.FileInfo) wire.FileInfo {
	i := wire.FileInfo{
		Name: filepath.Base(path), Path: path, Kind: wire.KindOther, Size: fi.Size(),
		Mode: uint32(fi.Mode().Perm()), ModTime: fi.ModTime(),
	}
	switch m := fi.Mode(); {
	case m.IsRegular():
		i.Kind = wire.KindFile
	case m.IsDir():
		i.Kind = wire.KindDir
	case m&fs.ModeSymlink != 0:
		i.Kind = wire.KindSymlink
	}
	if st, ok := fi.Sys().(*sysStat); ok {
		i.UID, i.GID = st.Uid, st.Gid
	}
	return i
}

// statFile describes what a path leads to. A symlink that leads nowhere
// describes itself.
func statFile(path string) (any, error) {
	fi, err := os.Stat(path)
	if err == nil {
		return describe(path, fi), nil
	}
	lfi, lerr := os.Lstat(path)
	if lerr != nil {
		return nil, err
	}
	i := describe(path, lfi)
	i.Target, _ = os.Readlink(path)
	return i, nil
}

// listDir gives each entry of a directory, in no order.
func listDir(path string, yield func(any) error) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(256)
		for _, e := range entries {
			fi, err := e.Info()
			if err != nil {
				continue // removed meanwhile
			}
			if err := yield(describe(filepath.Join(path, e.Name()), fi)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// makeDirs makes a directory and what is missing above it.
func (a *Agent) makeDirs(path string) error {
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return nil
	case err == nil:
		return failf(wire.Conflict, "%s is there and is not a directory", path)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := a.makeDirs(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) { // by another call; or a symlink that leads nowhere
			if fi, serr := os.Stat(path); serr == nil && fi.IsDir() {
				return nil
			}
		}
		return err
	}
	return a.own(path)
}

// own gives a new file to whom it is to belong.
func (a *Agent) own(path string) error {
	if uid, gid := a.ownerOf(path); uid != 0 || gid != 0 {
		return os.Lchown(path, uid, gid)
	}
	return nil
}

// remove removes a file, or a directory with all that is in it. What is not
// there needs no removing.
func (a *Agent) remove(path string) error {
	if path == "/" || path == filepath.Clean(a.cfg.Root) {
		return failf(wire.Invalid, "the root directory cannot be removed")
	}
	return os.RemoveAll(path)
}

// readFile streams a regular file.
func readFile(c *call, path string) error {
	f, fi, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.accept(describe(path, fi)); err != nil {
		return err
	}
	_, err = io.CopyBuffer(&download{c: c}, onlyReader{f}, make([]byte, copyBuffer))
	return err
}

// openRegular opens a file for reading without being held up by a FIFO or
// device.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	fi, err := f.Stat()
	switch {
	case err != nil:
	case fi.IsDir():
		err = failf(wire.Invalid, "%s is a directory", path)
	case !fi.Mode().IsRegular():
		err = failf(wire.Invalid, "%s is not a regular file", path)
	default:
		return f, fi, nil
	}
	f.Close()
	return nil, nil, err
}

// writeFile replaces or makes a file, atomically, with what r gives. A symlink
// is followed.
func (a *Agent) writeFile(path string, mode *uint32, r io.Reader) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	uid, gid := a.ownerOf(path)
	perm := fs.FileMode(0o644)
	switch fi, err := os.Stat(path); {
	case err == nil && fi.IsDir():
		return failf(wire.Invalid, "%s is a directory", path)
	case err == nil && !fi.Mode().IsRegular():
		return failf(wire.Invalid, "%s is not a regular file", path)
	case err == nil:
		perm = fi.Mode().Perm()
		if st, ok := fi.Sys().(*sysStat); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	if mode != nil {
		perm = fs.FileMode(*mode).Perm()
	}
	if err := a.makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	return replaceFile(path, perm, uid, gid, r)
}

// replaceFile writes a file beside path and moves it there.
func replaceFile(path string, perm fs.FileMode, uid, gid int, r io.Reader) (err error) {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), newID(".oc-")), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, cause(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = io.CopyBuffer(onlyWriter{f}, r, make([]byte, copyBuffer)); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err = f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, cause(err))
	}
	return nil
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo, which would use buffers
// or system calls of their own choice.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }
