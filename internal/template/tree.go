// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

// treeFormat begins what is hashed; another listing gets another name.
const treeFormat = "oc-tree-1"

// stamp is the time that everything gets which a build itself has made: the
// first second that every archive format can hold, 1980-01-01 UTC.
const stamp = 315532800

// sealTree computes a tree's hash and gives times of modification that came
// from the build, those since it began, the fixed value stamp, so that an image
// of the tree does not tell when it was built.
//
// The hash is SHA-256 over treeFormat and one record per name, parents first,
// the names of a directory sorted by bytes. A record holds path, type and
// permission bits, owner, group, size, content hash, link target, device, the
// path of the first hard link to the same file, and the extended attributes
// sorted by name; text with its length before it, numbers as varints. Times
// are not in it: the same content is the same template whenever it was made.
func sealTree(ctx context.Context, dir string, began time.Time) (Tree, error) {
	s := sealer{ctx: ctx, dir: dir, began: began, sum: sha256.New(), links: map[fileID]string{}, buf: make([]byte, 1<<18)}
	s.text(treeFormat)
	if err := s.walk(""); err != nil {
		if errors.Is(err, unix.ENAMETOOLONG) {
			return Tree{}, fault.Wrap(fault.Invalid, err, "the root file system has a path that is too long")
		}
		return Tree{}, fmt.Errorf("hash the root file system: %w", err)
	}
	s.tree.Hash = hex.EncodeToString(s.sum.Sum(nil))
	return s.tree, nil
}

type fileID struct{ dev, ino uint64 }

type sealer struct {
	ctx   context.Context
	dir   string
	began time.Time
	sum   hash.Hash
	links map[fileID]string // first paths of files with several names
	buf   []byte
	tree  Tree
}

func (s *sealer) text(t string) {
	s.number(uint64(len(t)))
	_, _ = io.WriteString(s.sum, t) // a hash never fails
}

func (s *sealer) number(n uint64) {
	s.sum.Write(binary.AppendUvarint(nil, n))
}

// walk adds a name and all below it. Only directories are entered, never links.
func (s *sealer) walk(rel string) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	abs := filepath.Join(s.dir, rel)
	var st unix.Stat_t
	if err := unix.Lstat(abs, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: abs, Err: err}
	}
	s.tree.Files++
	if err := s.record(rel, abs, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		entries, err := os.ReadDir(abs) // sorted
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := s.walk(path.Join(rel, e.Name())); err != nil {
				return err
			}
		}
	}
	mtime := time.Unix(st.Mtim.Unix())
	if mtime.Before(s.began) && st.Mtim.Sec >= 0 {
		return nil
	}
	return setTime(abs, stamp)
}

// record adds one name.
func (s *sealer) record(rel, abs string, st *unix.Stat_t) error {
	s.text(rel)
	s.number(uint64(st.Mode))
	s.number(uint64(st.Uid))
	s.number(uint64(st.Gid))
	var size uint64
	var content, target, first string
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		size = uint64(st.Size)
		if first = s.firstLink(rel, st); first == "" {
			s.tree.SizeBytes += st.Size
			content, err = s.content(abs)
		}
	case unix.S_IFLNK:
		target, err = os.Readlink(abs)
	}
	if err != nil {
		return err
	}
	s.number(size)
	s.text(content)
	s.text(target)
	s.number(st.Rdev)
	s.text(first)
	return s.xattrs(abs)
}

// firstLink gives the earlier path of the same file, or "".
func (s *sealer) firstLink(rel string, st *unix.Stat_t) string {
	if st.Nlink < 2 {
		return ""
	}
	id := fileID{st.Dev, st.Ino}
	if first, ok := s.links[id]; ok {
		return first
	}
	s.links[id] = rel
	return ""
}

func (s *sealer) content(abs string) (string, error) {
	f, err := os.Open(abs)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, struct{ io.Reader }{f}, s.buf); err != nil {
		return "", err
	}
	return string(sum.Sum(nil)), nil
}

// xattrs adds the attributes that unpacking keeps; others, such as labels of
// the host's security module, are the host's and not the tree's.
func (s *sealer) xattrs(abs string) error {
	n, err := unix.Llistxattr(abs, s.buf)
	if errors.Is(err, unix.ENOTSUP) {
		n, err = 0, nil
	}
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: abs, Err: err}
	}
	keys := strings.Split(string(s.buf[:n]), "\x00")
	keys = slices.DeleteFunc(keys, func(k string) bool {
		return k != "security.capability" && !strings.HasPrefix(k, "user.")
	})
	slices.Sort(keys)
	s.number(uint64(len(keys)))
	for _, k := range keys {
		n, err := unix.Lgetxattr(abs, k, s.buf)
		if err != nil {
			return &os.PathError{Op: "getxattr", Path: abs, Err: err}
		}
		s.text(k)
		s.text(string(s.buf[:n]))
	}
	return nil
}

// setTime sets the time of modification of a name, also of a link, in seconds
// since 1970.
func setTime(abs string, sec int64) error {
	ts := unix.Timespec{Sec: sec}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, abs, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chtimes", Path: abs, Err: err}
	}
	return nil
}
