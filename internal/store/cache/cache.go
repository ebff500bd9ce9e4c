// SPDX-License-Identifier: Apache-2.0

// Package cache keeps decompressed pages of packs on the local disk, for all
// processes of a node at once: the server and every pager open the same
// directory and meet in nothing but its files.
//
// A pack has two files. <name> is sparse and holds the page of slot i at
// i*4096. <name>.sums holds 8 bytes for each slot: the XXH3-64 of the page,
// mixed with the pack's name and the slot, and never zero, so that a hole reads
// as "absent". A writer writes the page first and its sum afterwards; a reader
// takes the sum first and compares. A page whose sum is absent or does not
// match is a miss.
//
// Invariants:
//   - Read gives what was written at that slot of that pack, or nothing: not a
//     power cut, a full disk, a flipped bit or a writer in the middle makes it
//     give anything else. So nothing is ever fsynced, and whatever is lost
//     costs a miss.
//   - A pack in use is never evicted: who uses it holds a shared lock on its
//     page file, which the kernel releases with the process.
//   - A pack's slot only ever gets one content, whoever writes it. Packs are
//     immutable; this is what makes writers harmless to each other.
//
// The package does not know what a pack is, where pages come from or what they
// hold. XXH3 finds accidents, not forgeries: who can write to the directory is
// trusted.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// PageSize is the size of a page and of a slot, in bytes.
	PageSize = 4096
	// MaxSlots bounds the slots of a pack.
	MaxSlots = 1 << 24
	// maxName is far from what file systems allow, the suffix included.
	maxName = 128

	sumsSuffix = ".sums" // letters that no pack's name has
	sumSize    = 8
)

// trimShare is the part of the limit that one process may write before it trims
// by itself.
const trimShare = 16

// Cache is a directory of packs. It may be used by many goroutines.
type Cache struct {
	dir   string
	limit int64

	hits, misses, damaged atomic.Int64
	written               atomic.Int64 // bytes since the last trim
	trimming              sync.Mutex   // one trim of this process at a time
}

// Stats is what a cache holds and what it was good for.
type Stats struct {
	Bytes int64 // allocated on disk, of all packs and their sums
	Packs int   // on disk

	// Of this process since Open, in pages.
	Hits    int64
	Misses  int64 // damaged ones included
	Damaged int64 // had a sum, and other bytes than it says
}

// Open opens the cache in a directory, which is made if it is missing. limit
// is what Trim reduces it to, in bytes of disk.
func Open(dir string, limit int64) (*Cache, error) {
	if limit < 0 {
		return nil, fmt.Errorf("cache: a limit of %d bytes", limit)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return &Cache{dir: dir, limit: limit}, nil
}

// Pack opens the pack of a name, of 1 to 128 hexadecimal digits (lower case),
// hyphens and dots beginning with a digit, for reading and writing its slots
// 0 to slots-1. Until Close it is in use: no process evicts it.
func (c *Cache) Pack(name string, slots int) (*Pack, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if slots < 1 || slots > MaxSlots {
		return nil, fmt.Errorf("cache: a pack of %d slots", slots)
	}
	path := filepath.Join(c.dir, name)
	pages, err := lock(path, unix.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("cache: open a pack: %w", err)
	}
	sums, err := os.OpenFile(path+sumsSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		pages.Close()
		return nil, fmt.Errorf("cache: open a pack: %w", err)
	}
	p := &Pack{cache: c, pages: pages, sums: sums, slots: slots, mask: nameMask(name)}
	p.touch()
	return p, nil
}

// Drop removes a pack, unless some process uses it, and tells whether it is
// gone.
func (c *Cache) Drop(name string) (bool, error) {
	if err := checkName(name); err != nil {
		return false, err
	}
	gone, err := c.evict(name)
	if err != nil {
		return false, fmt.Errorf("cache: drop a pack: %w", err)
	}
	return gone, nil
}

// evict removes the files of a pack that nobody uses. The sums go first, under
// the lock that is on the page file: who opens the pack meanwhile waits for the
// lock, finds its file gone and makes two new ones.
func (c *Cache) evict(name string) (gone bool, err error) {
	path := filepath.Join(c.dir, name)
	pages, err := lock(path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer pages.Close()
	if err := os.Remove(path + sumsSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Remove(path); err != nil {
		return false, err
	}
	return true, nil
}

// lock opens the file at path, makes it if there is none, and locks it. What it
// gives is what path names, and stays so for as long as it is open: a file that
// was evicted between opening and locking is left for the one that took its
// place.
func lock(path string, how int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f, how); err != nil {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		named, err := os.Lstat(path)
		if err == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// flock is the system call, begun again when a signal ends it.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// checkName refuses what is no name of a pack.
func checkName(name string) error {
	if name == "" || len(name) > maxName || strings.Trim(name, "0123456789abcdef-.") != "" ||
		strings.ContainsRune("-.", rune(name[0])) {
		return fmt.Errorf("cache: %.40q is no name of a pack", name)
	}
	return nil
}

// wrote counts what this process adds, and trims after a share of the limit, so
// that processes that live long keep the cache small by themselves.
func (c *Cache) wrote(n int) {
	if c.written.Add(int64(n)) <= c.limit/trimShare || !c.trimming.TryLock() {
		return
	}
	defer c.trimming.Unlock()
	_, _ = c.trim(context.Background()) // best effort, like the write; the next one tries again
}
