// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// maxTrailer bounds what is read behind the end of an archive, to learn whether
// the stream broke.
const maxTrailer = 1 << 20

// Unpack makes the one file or directory of an archive, whose member names all
// begin with the same element, as dest; that element is forgotten. Missing
// parents of dest are made. A directory is laid over one that exists; a file
// replaces a file.
func Unpack(ctx context.Context, r io.Reader, dest string, notices Notices) (Stats, error) {
	root, base, err := open(dest)
	if err != nil {
		return Stats{}, err
	}
	defer root.Close()
	u := &unpacker{root: root, base: base, dest: dest, notices: notices, made: make(map[string]fs.FileMode)}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return u.stats, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return u.stats, fmt.Errorf("unreadable archive: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return u.stats, err
		}
		u.notices.progress(u.stats)
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(r, maxTrailer)); err != nil {
		return u.stats, fmt.Errorf("unreadable archive: %w", err)
	}
	if u.entries == 0 {
		return u.stats, errors.New("the archive is empty")
	}
	return u.stats, u.finish()
}

// open opens the directory that everything is written into, and gives dest's
// name in it: a directory that exists is it itself.
func open(dest string) (root *os.Root, base string, err error) {
	if st, err := os.Stat(dest); err == nil && st.IsDir() {
		root, err := os.OpenRoot(dest)
		return root, ".", err
	}
	dest, err = filepath.Abs(dest)
	if err != nil {
		return nil, "", err
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o777); err != nil {
		return nil, "", err
	}
	root, err = os.OpenRoot(filepath.Dir(dest))
	return root, filepath.Base(dest), err
}

// unpacker is an Unpack under way.
type unpacker struct {
	root    *os.Root
	base    string // name of the tree in root, "." for root itself
	dest    string // what the user calls the tree
	notices Notices

	entries  int
	hasFirst bool
	first    string                 // element that all names begin with, "" for none
	safe     string                 // directory found to be reached without a link, "" for none
	made     map[string]fs.FileMode // directories; they get their mode at the end, so that they can be filled
	stats    Stats
}

// entry unpacks one member.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if u.entries++; u.entries > maxEntries {
		return fmt.Errorf("the archive has more than %d entries", maxEntries)
	}
	rel, err := u.relative(h.Name)
	if err != nil {
		return err
	}
	name := path.Join(u.base, rel)
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(name, h.FileInfo().Mode().Perm())
	case tar.TypeReg:
		return u.file(name, h, content)
	case tar.TypeSymlink:
		return u.symlink(name, rel, h)
	case tar.TypeLink:
		return u.hardLink(name, h)
	case tar.TypeXGlobalHeader:
		return nil
	}
	u.notices.skip(h.Name, "is a %s", kind(h.FileInfo().Mode()))
	return nil
}

// relative checks the name of a member and gives it without its first element;
// "." is the tree itself.
func (u *unpacker) relative(member string) (string, error) {
	if len(member) > maxName {
		return "", fmt.Errorf("the archive has a name longer than %d bytes", maxName)
	}
	elements := strings.Split(member, "/")
	name := path.Clean(member)
	if slices.Contains(elements, "..") || len(elements) > maxDepth || !filepath.IsLocal(name) {
		return "", fmt.Errorf("the archive has the unsafe name %q", member)
	}
	first, rest, _ := strings.Cut(name, "/")
	if !u.hasFirst {
		u.hasFirst = true
		if name != "." {
			u.first = first
		}
	}
	if u.first == "" {
		return name, nil
	}
	if first != u.first {
		return "", fmt.Errorf("the archive has the name %q outside of %q", member, u.first)
	}
	return path.Join(".", rest), nil
}

// parents makes the missing directories above name and refuses to go through
// a link or a file.
func (u *unpacker) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." || dir == u.safe {
		return nil
	}
	if err := u.parents(dir); err != nil {
		return err
	}
	if err := u.makeDir(dir, 0o755); err != nil {
		return err
	}
	u.safe = dir
	return nil
}

// makeDir makes one directory unless it is there.
func (u *unpacker) makeDir(name string, mode fs.FileMode) error {
	st, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
		u.made[name] = mode
		return nil
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is in the way: it is not a directory", u.local(name))
	}
	return nil
}

// directory unpacks a directory; the mode of one that exists is left alone.
func (u *unpacker) directory(name string, mode fs.FileMode) error {
	if err := u.parents(name); err != nil {
		return err
	}
	if name == "." {
		return nil
	}
	if err := u.makeDir(name, mode); err != nil {
		return err
	}
	if _, ours := u.made[name]; ours { // maybe made because a member came before it
		u.made[name] = mode
	}
	return nil
}

// file unpacks a regular file: beside its place, then into it.
func (u *unpacker) file(name string, h *tar.Header, content io.Reader) (err error) {
	for record := range h.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") { // a short archive could fill the disk
			return fmt.Errorf("the archive has a sparse file: %q", h.Name)
		}
	}
	if u.stats.Bytes+h.Size > maxBytes {
		return fmt.Errorf("the archive has more than %d bytes", int64(maxBytes))
	}
	tmp, err := u.beside(name)
	if err != nil {
		return err
	}
	f, err := u.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err // without the name that it has for a moment
		}
		return fmt.Errorf("%s cannot be written: %w", u.local(name), err)
	}
	defer func() {
		if err != nil {
			_ = u.root.Remove(tmp)
		}
	}()
	n, err := io.Copy(f, content)
	if err == nil {
		err = f.Chmod(h.FileInfo().Mode().Perm())
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && !h.ModTime.IsZero() {
		err = u.root.Chtimes(tmp, h.ModTime, h.ModTime)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", u.local(name), err)
	}
	if err := u.root.Rename(tmp, name); err != nil {
		return err
	}
	u.stats.Files++
	u.stats.Bytes += n
	return nil
}

// symlink unpacks a symbolic link that stays in the tree.
func (u *unpacker) symlink(name, rel string, h *tar.Header) (err error) {
	target := path.Join(path.Dir(rel), h.Linkname)
	if rel == "." || path.IsAbs(h.Linkname) || !filepath.IsLocal(target) {
		u.notices.skip(h.Name, "is a link that points outside, to %s", h.Linkname)
		return nil
	}
	tmp, err := u.beside(name)
	if err != nil {
		return err
	}
	if err := u.root.Symlink(h.Linkname, tmp); err != nil {
		return err
	}
	return u.place(tmp, name)
}

// hardLink unpacks a second name of a file that came before.
func (u *unpacker) hardLink(name string, h *tar.Header) error {
	rel, err := u.relative(h.Linkname)
	if err != nil {
		return err
	}
	source := path.Join(u.base, rel)
	if err := u.parents(source); err != nil {
		return err
	}
	st, err := u.root.Lstat(source)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("the archive links to %q, which is not a file", h.Linkname)
	}
	tmp, err := u.beside(name)
	if err != nil {
		return err
	}
	if err := u.root.Link(source, tmp); err != nil {
		return err
	}
	return u.place(tmp, name)
}

// place renames tmp to name. What was there before may have been a directory on
// the way to others.
func (u *unpacker) place(tmp, name string) error {
	u.safe = ""
	err := u.root.Rename(tmp, name)
	// Renaming onto another name of the same file does nothing.
	if rerr := u.root.Remove(tmp); err == nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = rerr
	}
	return err
}

// beside gives a temporary name in the directory of name, which it makes ready.
func (u *unpacker) beside(name string) (string, error) {
	if name == "." {
		return "", fmt.Errorf("%s is a directory: end it with %q to put a file into it", u.dest, "/")
	}
	if err := u.parents(name); err != nil {
		return "", err
	}
	return path.Join(path.Dir(name), ".oc-"+rand.Text()), nil
}

// finish gives the directories their modes, the innermost first: an outer one
// may not let us in afterwards.
func (u *unpacker) finish() error {
	names := slices.Sorted(maps.Keys(u.made))
	for _, name := range slices.Backward(names) {
		if st, err := u.root.Lstat(name); err != nil || !st.IsDir() {
			continue // replaced by a later member
		}
		if err := u.root.Chmod(name, u.made[name]); err != nil {
			return err
		}
	}
	return nil
}

// local is what the user calls a name in root.
func (u *unpacker) local(name string) string {
	if u.base == "." {
		return filepath.Join(u.dest, name)
	}
	return filepath.Join(filepath.Dir(u.dest), name)
}
