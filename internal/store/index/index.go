// SPDX-License-Identifier: Apache-2.0

// Package index finds pages by their hash: in which pack, in which segment of
// it and at which slot.
//
// It is a hint and can always be thrown away. Its file is not synced, is begun
// anew when it is lost or damaged, and then simply knows nothing: who asks
// compares HasPack or Packs with the packs that exist, and adds those that are
// missing.
//
// The file is a bbolt database of runs: ascending lists of (first 16 bytes of
// the hash, location), cut into blocks with a sum each. Adding a pack appends a
// run, and runs of like size are merged, so that pages of thousands of packs are
// in a few runs and nothing is ever inserted in the middle of a tree. A Bloom
// filter in memory, one to two bytes for each page, answers for nearly all the
// pages that are not there.
//
// Invariants:
//   - A location that Lookup reports was added with that hash (its first 128
//     bits), for a pack that has not been removed: every block is checked when
//     it is read, and a pack's number never means another pack.
//   - Memory: 1 to 2 bytes for each page, some 200 bytes for each pack, and about
//     32 MB while runs are merged, however large the index is.
//   - No damage of the file, panics of bbolt included, reaches the caller as
//     anything but an index that knows less.
//
// The package does not know what a pack's table says, nor where packs are.
package index

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
)

// Bounds of a pack.
const (
	MaxSegments = 1 << 24  // of a pack
	MaxSlots    = 1 << 12  // of a segment
	MaxName     = 1 << 10  // bytes of a name
	MaxTable    = 64 << 20 // bytes of a table
	maxPack     = 1<<28 - 1
)

// Location is where a page is.
type Location struct {
	Pack    uint32 // a number that Pack resolves
	Segment int    // in the pack
	Slot    int    // in the segment
}

// Index is an open index. It may be used by many goroutines, and by one process
// at a time.
type Index struct {
	path string
	boot string // of the running kernel
	log  *slog.Logger

	mu sync.RWMutex
	db *bbolt.DB // nil after Close, or when no new file could be made
	state
	closed   bool
	renewals int // files that were given up
}

// state is what is known of the file without reading it.
type state struct {
	packs    map[uint32]pack
	numbers  map[string]uint32 // of packs, by name
	lastPack uint32            // highest number ever given
	runs     []run             // oldest first
	filter   filter            // has all entries of all runs
}

type pack struct {
	name  string
	pages int // entries added for it
}

type run struct {
	number  uint32
	entries int
}

func newState() state {
	return state{packs: map[uint32]pack{}, numbers: map[string]uint32{}, filter: newFilter(0)}
}

// Open opens the index at path, beside which it keeps a small second file, or
// begins an empty one there. It fails when another process has it open.
func Open(path string, log *slog.Logger) (*Index, error) {
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	return open(path, boot, log)
}

func open(path, boot string, log *slog.Logger) (*Index, error) {
	ix := &Index{path: path, boot: boot, log: log, state: newState()}
	if err := ix.open(); err != nil {
		ix.abandon(err)
		return nil, fmt.Errorf("index: open %s: %w", path, err)
	}
	return ix, nil
}

// Close makes the file durable and closes it. What is called afterwards finds
// nothing, or fails.
func (ix *Index) Close() error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.closed = true
	if ix.db == nil {
		return nil
	}
	err := guard(func() error {
		if err := ix.db.Sync(); err != nil {
			return err
		}
		return ix.putMark(markClosed)
	})
	ix.abandon(err)
	ix.state = newState()
	if err != nil {
		return fmt.Errorf("index: close: %w", err)
	}
	return nil
}

// AddPack adds a pack: for each of its segments the hashes of its pages in the
// order of their slots, and a table of the caller's that Pack gives back. A pack
// of that name that is there already stays as it is.
func (ix *Index) AddPack(name string, table []byte, segments [][][32]byte) error {
	if name == "" || len(name) > MaxName || len(table) > MaxTable || len(segments) > MaxSegments {
		return fmt.Errorf("index: a pack with a name of %d bytes, a table of %d and %d segments", len(name), len(table), len(segments))
	}
	pages := 0
	for _, s := range segments {
		if len(s) > MaxSlots {
			return fmt.Errorf("index: a segment of %d pages", len(s))
		}
		pages += len(s)
	}
	err := ix.change(func() error {
		if _, ok := ix.numbers[name]; ok {
			return nil
		}
		if ix.lastPack == maxPack {
			return errors.New("no numbers are left: remove the file")
		}
		number := ix.lastPack + 1
		return ix.add(number, pack{name, pages}, table, entriesOf(number, segments, pages))
	})
	if err != nil {
		return fmt.Errorf("index: add a pack: %w", err)
	}
	return nil
}

// entriesOf makes the entries of a pack, ascending.
func entriesOf(number uint32, segments [][][32]byte, pages int) []entry {
	entries := make([]entry, 0, pages)
	for i, s := range segments {
		for slot := range s {
			entries = append(entries, entry{keyOf(s[slot][:]), uint64(number)<<36 | uint64(i)<<12 | uint64(slot)})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.compare(b.key) })
	return entries
}

// RemovePack removes a pack; one that is not there is no error. Its entries are
// not reported any more, and leave the file when runs are merged.
func (ix *Index) RemovePack(name string) error {
	err := ix.change(func() error {
		number, ok := ix.numbers[name]
		if !ok {
			return nil
		}
		return ix.remove(number)
	})
	if err != nil {
		return fmt.Errorf("index: remove a pack: %w", err)
	}
	return nil
}

// change runs something that changes the index, and once more in a new file if
// this one turns out to be damaged.
func (ix *Index) change(do func() error) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if err := ix.ready(); err != nil {
		return err
	}
	err := guard(do)
	if !errors.Is(err, errDamaged) {
		return err
	}
	if err := ix.giveUp(err); err != nil {
		return err
	}
	return guard(do)
}

// HasPack tells whether the pack is there.
func (ix *Index) HasPack(name string) bool {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	_, ok := ix.numbers[name]
	return ok
}

// Packs gives the names of the packs that are there, in order.
func (ix *Index) Packs() []string {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	names := make([]string, 0, len(ix.numbers))
	for name := range ix.numbers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Pack gives the name and the table of the pack with a number, or false when it
// is not there any more.
func (ix *Index) Pack(number uint32) (name string, table []byte, ok bool) {
	ix.read(func(tx *bbolt.Tx) error {
		p, known := ix.packs[number]
		if !known {
			return nil
		}
		_, found, err := parsePack(packKey(number), tx.Bucket(packsBucket).Get(packKey(number)))
		if err != nil {
			return err
		}
		name, table, ok = p.name, slices.Clone(found), true
		return nil
	})
	return name, table, ok
}

// read runs something that reads, and gives the file up if it is damaged.
func (ix *Index) read(do func(tx *bbolt.Tx) error) {
	ix.mu.RLock()
	if ix.db == nil {
		ix.mu.RUnlock()
		return
	}
	renewals := ix.renewals
	err := guard(func() error { return ix.db.View(do) })
	ix.mu.RUnlock()
	if err == nil {
		return
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.db == nil || ix.renewals != renewals {
		return // another reader did
	}
	if err := ix.giveUp(err); err != nil {
		ix.log.Error("no page index", "path", ix.path, "err", err)
	}
}
