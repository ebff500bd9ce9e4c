// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// sysStat is what FileInfo.Sys gives.
type sysStat = syscall.Stat_t

// pack streams a file or directory as a tar archive. A directory is "." and
// what is in it, by relative names; a file is one entry with its base name.
// Only directories, regular files and symlinks are in it, with permissions,
// times and numeric owners; hard links become separate files.
func pack(c *call, p string) error {
	fi, err := os.Stat(p)
	if err != nil {
		return err
	}
	if !fi.IsDir() && !fi.Mode().IsRegular() {
		return failf(wire.Invalid, "%s is neither a file nor a directory", p)
	}
	dir := p
	if !fi.IsDir() {
		dir = filepath.Dir(p)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := c.accept(describe(p, fi)); err != nil {
		return err
	}
	k := packer{tw: tar.NewWriter(&download{c: c}), root: root, buf: make([]byte, copyBuffer)}
	if fi.IsDir() {
		err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && name != "." {
				return nil // removed meanwhile
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return nil
			}
			return k.add(name, info)
		})
	} else if real, err := filepath.EvalSymlinks(p); err != nil {
		return err
	} else {
		err = k.addFile(real, &tar.Header{Name: filepath.Base(p)}, fi)
		if err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return k.tw.Close()
}

// packer adds files to an archive.
type packer struct {
	tw   *tar.Writer
	root *os.Root
	buf  []byte
}

// add adds one entry of the tree.
func (k *packer) add(name string, fi fs.FileInfo) error {
	h := &tar.Header{Name: name}
	switch m := fi.Mode(); {
	case m.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case m&fs.ModeSymlink != 0:
		target, err := k.root.Readlink(name)
		if err != nil {
			return nil
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case m.IsRegular():
		return k.addFile(filepath.Join(k.root.Name(), name), h, fi)
	default:
		return nil
	}
	fillHeader(h, fi)
	return k.tw.WriteHeader(h)
}

// addFile adds a regular file with as many bytes as it had when it was opened.
func (k *packer) addFile(path string, h *tar.Header, _ fs.FileInfo) error {
	f, fi, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fillHeader(h, fi)
	h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	if err := k.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(k.tw, onlyReader{io.LimitReader(f, h.Size)}, k.buf)
	if err == nil && n < h.Size {
		return failf(wire.Conflict, "%s shrank while it was read: try again", path)
	}
	return err
}

func fillHeader(h *tar.Header, fi fs.FileInfo) {
	h.Mode, h.ModTime = int64(fi.Mode().Perm()), fi.ModTime()
	if st, ok := fi.Sys().(*sysStat); ok {
		h.Uid, h.Gid = int(st.Uid), int(st.Gid)
	}
}

// unpack puts the files of a tar archive into a directory, which is made if it
// is missing. Nothing is written outside it, whatever names and links the
// archive or the directory holds. Everything new belongs to the sandbox's user.
func (a *Agent) unpack(dir string, r io.Reader) error {
	if err := a.makeDirs(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	k := unpacker{root: root, buf: make([]byte, copyBuffer), uid: -1, gid: -1}
	if u, err := a.lookupUser(""); err == nil && os.Geteuid() == 0 {
		k.uid, k.gid = int(u.uid), int(u.gid)
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // padding
			return err
		}
		if err == nil {
			err = k.entry(h, tr)
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return failf(wire.Invalid, "not a whole tar archive: %v", err)
		}
		if err != nil && strings.Contains(err.Error(), "path escapes from parent") { // os.Root has no value for it
			return failf(wire.Invalid, "archive entry %q leads outside %s", h.Name, dir)
		}
		if err != nil {
			return err
		}
	}
}

// unpacker makes the files of an archive below root.
type unpacker struct {
	root     *os.Root
	buf      []byte
	uid, gid int // -1: as they are made
}

func (k *unpacker) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return failf(wire.Invalid, "archive entry %q leads outside the directory", h.Name)
	}
	if err := k.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	perm := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return k.dir(name, perm)
	case tar.TypeReg:
		return k.file(name, perm, h, r)
	case tar.TypeSymlink:
		if err := k.clear(name); err != nil {
			return err
		}
		if err := k.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return k.own(name)
	case tar.TypeLink:
		target := path.Clean(h.Linkname)
		if !filepath.IsLocal(target) {
			return failf(wire.Invalid, "hard link %q leads outside the directory", h.Name)
		}
		if target == name {
			return nil
		}
		if err := k.clear(name); err != nil {
			return err
		}
		return k.root.Link(target, name)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return failf(wire.Invalid, "archive entry %q is of a kind that cannot be unpacked (%q)", h.Name, h.Typeflag)
}

// mkdirs makes the directories above an entry that the archive did not name.
func (k *unpacker) mkdirs(name string) error {
	if fi, err := k.root.Stat(name); err == nil && fi.IsDir() {
		return nil
	}
	if parent := path.Dir(name); parent != name {
		if err := k.mkdirs(parent); err != nil {
			return err
		}
	}
	if err := k.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return k.own(name)
}

// dir makes a directory. One that is there keeps its owner, and if it is the
// top one its mode too.
func (k *unpacker) dir(name string, perm fs.FileMode) error {
	if name == "." {
		return nil
	}
	err := k.root.Mkdir(name, 0o700)
	switch {
	case err == nil:
		err = k.own(name)
	case errors.Is(err, fs.ErrExist):
		fi, serr := k.root.Stat(name)
		if serr != nil {
			return serr
		}
		if !fi.IsDir() {
			return failf(wire.Conflict, "%s is there and is not a directory", name)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	d, err := k.root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Chmod(perm)
}

// file writes beside the name and moves it there, so that a file in use is
// replaced and never seen half written.
func (k *unpacker) file(name string, perm fs.FileMode, h *tar.Header, r io.Reader) (err error) {
	if fi, err := k.root.Lstat(name); err == nil && fi.IsDir() {
		return failf(wire.Conflict, "%s is there and is a directory", name)
	}
	temp := path.Join(path.Dir(name), newID(".oc-"))
	f, err := k.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", name, cause(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = k.root.Remove(temp)
		}
	}()
	if _, err = io.CopyBuffer(onlyWriter{f}, onlyReader{r}, k.buf); err != nil {
		return err
	}
	if err = f.Chown(k.uid, k.gid); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if !h.ModTime.IsZero() {
		_ = k.root.Chtimes(temp, h.ModTime, h.ModTime)
	}
	if err = k.root.Rename(temp, name); err != nil {
		return fmt.Errorf("%s cannot be written: %w", name, cause(err))
	}
	return nil
}

// clear removes what a link is to replace; a directory stays and is an error.
func (k *unpacker) clear(name string) error {
	if err := k.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (k *unpacker) own(name string) error { return k.root.Lchown(name, k.uid, k.gid) }
