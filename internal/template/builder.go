// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
)

// Progress takes short lines for a person who waits, such as "unpacking 34 %".
// It is called from one goroutine at a time; nil is allowed where it is a
// parameter.
type Progress func(line string)

func (p Progress) say(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}

// Builder makes, finds and removes the trees and images below one data
// directory. It may be used by many goroutines, and several processes may have
// Builders on one directory.
type Builder struct {
	dir    string
	log    *slog.Logger
	disk   durable.Disk
	flight flight
}

// New gives a Builder on a data directory, which it completes, and removes what
// builds that died have left there.
func New(dataDir string, log *slog.Logger) (*Builder, error) {
	b := &Builder{dir: dataDir, log: log}
	for _, d := range []string{"tmp", "templates", "images"} {
		if err := b.disk.MkdirAll(filepath.Join(dataDir, d), 0o700); err != nil {
			return nil, fmt.Errorf("prepare the data directory: %w", err)
		}
	}
	return b, b.sweep()
}

// Tree is an unpacked root file system.
type Tree struct {
	Hash      string `json:"hash"`      // 64 hex digits, see hashTree
	SizeBytes int64  `json:"sizeBytes"` // of all files' content
	Files     int64  `json:"files"`     // names in it
}

// treeRecord is the file beside a tree that describes it.
const treeRecord = "tree.json"

// Patterns that count are compiled when they are needed: every process of the
// binary, and there are many short ones, would pay half a millisecond for them.
var hashPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{64}$`)
})

// checkHash keeps anything but a hash from becoming a path.
func checkHash(hash string) error {
	if !hashPattern().MatchString(hash) {
		return fault.New(fault.Invalid, "%.80q is not a content hash", hash)
	}
	return nil
}

// Tree finds a tree. The fault is of kind NotFound if it is not on this node.
func (b *Builder) Tree(hash string) (Tree, error) {
	if err := checkHash(hash); err != nil {
		return Tree{}, err
	}
	var t Tree
	err := readJSON(filepath.Join(b.dir, "templates", hash, treeRecord), &t)
	if errors.Is(err, fs.ErrNotExist) {
		return Tree{}, fault.New(fault.NotFound, "root file system %s is not on this node", hash)
	}
	if err == nil && t.Hash != hash {
		err = errors.New("its record names another")
	}
	if err != nil {
		return Tree{}, fault.Wrap(fault.Internal, err, "root file system %s is damaged", hash)
	}
	return t, nil
}

// Trees gives the hashes of all trees on this node.
func (b *Builder) Trees() ([]string, error) {
	return namesIn(filepath.Join(b.dir, "templates"), "")
}

// TreePath gives where a tree's files are. They must not be changed.
func (b *Builder) TreePath(t Tree) string {
	return filepath.Join(b.dir, "templates", t.Hash, "tree")
}

// RemoveTree removes a tree. Images made from it stay. A tree that is not there
// is no error.
func (b *Builder) RemoveTree(hash string) error {
	if err := checkHash(hash); err != nil {
		return err
	}
	s, err := b.stage()
	if err != nil {
		return err
	}
	defer s.close()
	// First out of sight in one step, then file by file.
	err = b.disk.Rename(filepath.Join(b.dir, "templates", hash), s.path("removed"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// publish completes what is in s.path("new/tree") and makes it a Tree of the
// node.
func (b *Builder) publish(ctx context.Context, s *staging, say Progress) (t Tree, err error) {
	defer func() { err = noSpace(err) }()
	say.say("completing")
	if err := complete(s.path("new/tree")); err != nil {
		return Tree{}, err
	}
	say.say("hashing")
	if t, err = sealTree(ctx, s.path("new/tree"), s.began); err != nil {
		return Tree{}, err
	}
	record, err := json.Marshal(t)
	if err != nil {
		return Tree{}, err
	}
	if err := b.disk.WriteFile(s.path("new/"+treeRecord), record, 0o600); err != nil {
		return Tree{}, err
	}
	if err := b.disk.SyncTree(s.path("new")); err != nil {
		return Tree{}, err
	}
	err = b.disk.Rename(s.path("new"), filepath.Join(b.dir, "templates", t.Hash))
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		return b.Tree(t.Hash) // the same content is there already
	}
	if err != nil {
		return Tree{}, err
	}
	b.log.Info("root file system made", "tree", t.Hash, "bytes", t.SizeBytes, "files", t.Files)
	return t, nil
}

// staging is a directory in <data>/tmp for one piece of work. A lock on it says
// that its owner lives.
type staging struct {
	dir   string
	lock  *os.File
	began time.Time // by the file system's clock
	log   *slog.Logger
}

const stagingPrefix = "template-"

func (b *Builder) stage() (*staging, error) {
	dir, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), stagingPrefix+"*")
	if err != nil {
		return nil, noSpace(err)
	}
	s := &staging{dir: dir, log: b.log}
	if s.lock, err = os.Open(dir); err == nil {
		err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	var st fs.FileInfo
	if err == nil {
		st, err = s.lock.Stat()
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("prepare a staging directory: %w", err)
	}
	s.began = st.ModTime()
	return s, nil
}

// stageTree is stage with a directory for a new tree.
func (b *Builder) stageTree() (*staging, error) {
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Unavailable, "making a template needs root, because its files have owners").
			WithHint("Run the server as root.")
	}
	s, err := b.stage()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.path("new/tree"), 0o755); err != nil {
		s.close()
		return nil, noSpace(err)
	}
	return s, nil
}

func (s *staging) path(rel string) string { return filepath.Join(s.dir, rel) }

// close removes the directory with all that is left in it.
func (s *staging) close() {
	if err := os.RemoveAll(s.dir); err != nil {
		s.log.Warn("staging directory not removed; the next start will", "dir", s.dir, "err", err)
	}
	if s.lock != nil {
		s.lock.Close()
	}
}

// sweep removes staging directories whose owners are dead. Very young ones are
// left, because their owner may not have locked them yet.
func (b *Builder) sweep() error {
	names, err := namesIn(filepath.Join(b.dir, "tmp"), "")
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, stagingPrefix) {
			continue
		}
		dir := filepath.Join(b.dir, "tmp", name)
		f, err := os.Open(dir)
		if err != nil {
			continue // gone meanwhile
		}
		st, err := f.Stat()
		if err == nil && time.Since(st.ModTime()) > time.Minute &&
			unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			b.log.Info("removing what an unfinished build left", "dir", dir)
			if err := os.RemoveAll(dir); err != nil {
				b.log.Warn("staging directory not removed", "dir", dir, "err", err)
			}
		}
		f.Close()
	}
	return nil
}

// namesIn gives the names in a directory that end with a suffix, without it.
func namesIn(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// readJSON reads one of the package's own small records.
func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// noSpace makes a full disk a fault that says so.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Wrap(fault.Unavailable, err, "no space left in the data directory").
			WithHint("Free some space, or delete checkpoints and templates that nobody needs.")
	}
	return err
}
