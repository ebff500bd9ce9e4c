// SPDX-License-Identifier: Apache-2.0

package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
)

const (
	// maxRun bounds a run, and by it the memory that merging takes.
	maxRun = 1 << 18
	// minStale is how many stale entries are not worth a compaction.
	minStale = 1 << 16
)

// load reads all that is known of the file, and checks all that Lookup reads.
func (ix *Index) load() error {
	return ix.db.View(func(tx *bbolt.Tx) error {
		packs, runs := tx.Bucket(packsBucket), tx.Bucket(runsBucket)
		if packs == nil || runs == nil || tx.Bucket(blocksBucket) == nil {
			return errDamaged
		}
		ix.state = newState()
		ix.lastPack = uint32(min(packs.Sequence(), maxPack))
		err := packs.ForEach(func(k, v []byte) error {
			p, _, err := parsePack(k, v)
			if err != nil {
				return err
			}
			number := binary.BigEndian.Uint32(k)
			if _, twice := ix.numbers[p.name]; twice || number > ix.lastPack {
				return errDamaged
			}
			ix.packs[number], ix.numbers[p.name] = p, number
			return nil
		})
		if err != nil {
			return err
		}
		err = runs.ForEach(func(k, v []byte) error {
			data, err := unseal(k, v)
			if err != nil || len(k) != 4 || len(data) != 4 {
				return errDamaged
			}
			ix.runs = append(ix.runs, run{binary.BigEndian.Uint32(k), int(binary.BigEndian.Uint32(data))})
			return nil
		})
		if err != nil {
			return err
		}
		return ix.fillFilter(tx)
	})
}

// fillFilter makes the filter anew, with twice the room that is needed now.
func (ix *Index) fillFilter(tx *bbolt.Tx) error {
	ix.filter = newFilter(ix.entries())
	for _, r := range ix.runs {
		err := eachBlock(tx, r, func(b block) {
			for i := range b.len() {
				ix.filter.add(b.key(i))
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// entries is how many entries the runs have.
func (ix *Index) entries() (n int) {
	for _, r := range ix.runs {
		n += r.entries
	}
	return n
}

// add writes a pack, with its entries in runs of bounded size and its name last.
func (ix *Index) add(number uint32, p pack, table []byte, entries []entry) (err error) {
	ix.lastPack = number // used up, whatever happens
	ix.packs[number] = p // so that its entries are not stale
	defer func() {
		if err != nil {
			delete(ix.packs, number)
		}
	}()
	for done := false; !done; {
		part := entries[:min(len(entries), maxRun)]
		entries = entries[len(part):]
		done = len(entries) == 0
		err := ix.replace(ix.tail(len(part)), len(ix.runs), part, func(tx *bbolt.Tx) error {
			packs := tx.Bucket(packsBucket)
			if err := packs.SetSequence(uint64(number)); err != nil || !done {
				return err
			}
			return packs.Put(packKey(number), packValue(number, p, table))
		})
		if err != nil {
			return err
		}
	}
	ix.numbers[p.name] = number
	return nil
}

// tail tells from which run on all are to be merged with n new entries: those
// that are no larger than what is merged already. So a run that is written once
// more is in one of at least twice the size afterwards.
func (ix *Index) tail(n int) int {
	i := len(ix.runs)
	for i > 0 && ix.runs[i-1].entries <= n && ix.runs[i-1].entries+n <= maxRun {
		i--
		n += ix.runs[i].entries
	}
	return i
}

// remove forgets a pack, and rewrites the runs when most of what they have is
// stale.
func (ix *Index) remove(number uint32) error {
	err := ix.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(packsBucket).Delete(packKey(number)) })
	if err != nil {
		return err
	}
	delete(ix.numbers, ix.packs[number].name)
	delete(ix.packs, number)
	live := 0
	for _, p := range ix.packs {
		live += p.pages
	}
	if ix.entries()-live < max(minStale, live) {
		return nil
	}
	return ix.compact()
}

// compact rewrites every run without its stale entries, then joins those that
// have become small.
func (ix *Index) compact() error {
	for i := len(ix.runs) - 1; i >= 0; i-- {
		if err := ix.replace(i, i+1, nil, nil); err != nil {
			return err
		}
	}
	for i := len(ix.runs) - 2; i >= 0; i-- {
		if ix.runs[i].entries+ix.runs[i+1].entries <= maxRun {
			if err := ix.replace(i, i+2, nil, nil); err != nil {
				return err
			}
		}
	}
	return ix.db.View(ix.fillFilter)
}

// replace makes one run of the runs from i to before j, without their stale
// entries, and of new ones, ascending. also, if not nil, is done in the same
// transaction.
func (ix *Index) replace(i, j int, added []entry, also func(*bbolt.Tx) error) error {
	var made []run
	err := ix.db.Update(func(tx *bbolt.Tx) error {
		entries := added
		for _, r := range slices.Backward(ix.runs[i:j]) { // the small ones first
			old, err := ix.take(tx, r)
			if err != nil {
				return err
			}
			entries = merge(old, entries)
		}
		if len(entries) > 0 {
			number, err := putRun(tx, entries)
			if err != nil {
				return err
			}
			made = []run{{number, len(entries)}}
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
	if err != nil {
		return err
	}
	ix.runs = slices.Replace(ix.runs, i, j, made...)
	if ix.filter.full(ix.entries()) {
		return ix.db.View(ix.fillFilter)
	}
	for _, e := range added {
		ix.filter.add(e.key)
	}
	return nil
}

// putRun writes a run and gives its number.
func putRun(tx *bbolt.Tx, entries []entry) (uint32, error) {
	runs, blocks := tx.Bucket(runsBucket), tx.Bucket(blocksBucket)
	sequence, err := runs.NextSequence()
	if err != nil {
		return 0, err
	}
	if sequence > 1<<32-1 {
		return 0, fmt.Errorf("%w: no more numbers for runs", errDamaged)
	}
	number := uint32(sequence)
	blocks.FillPercent = 1 // only ever appended to
	n := 0
	for part := range slices.Chunk(entries, blockEntries) {
		if err := blocks.Put(makeBlock(number, n, part)); err != nil {
			return 0, err
		}
		n++
	}
	name := binary.BigEndian.AppendUint32(nil, number)
	value := binary.BigEndian.AppendUint32(make([]byte, sumSize), uint32(len(entries)))
	return number, runs.Put(name, seal(name, value))
}

// take reads the entries of a run that are not stale, and deletes it.
func (ix *Index) take(tx *bbolt.Tx, r run) ([]entry, error) {
	entries := make([]entry, 0, r.entries)
	err := eachBlock(tx, r, func(b block) {
		for i := range b.len() {
			e := b.entry(i)
			if _, ok := ix.packs[e.pack()]; ok {
				entries = append(entries, e)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	prefix := binary.BigEndian.AppendUint32(nil, r.number)
	blocks := tx.Bucket(blocksBucket)
	var names [][]byte
	c := blocks.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		names = append(names, bytes.Clone(k))
	}
	for _, name := range names {
		if err := blocks.Delete(name); err != nil {
			return nil, err
		}
	}
	return entries, tx.Bucket(runsBucket).Delete(prefix)
}

// eachBlock reads the blocks of a run, checked.
func eachBlock(tx *bbolt.Tx, r run, do func(block)) error {
	prefix := binary.BigEndian.AppendUint32(nil, r.number)
	c := tx.Bucket(blocksBucket).Cursor()
	left := r.entries
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		b, _, err := parseBlock(k, v)
		if err != nil {
			return err
		}
		if left -= b.len(); left < 0 {
			return errDamaged
		}
		do(b)
	}
	if left != 0 {
		return errDamaged
	}
	return nil
}

func packKey(number uint32) []byte { return binary.BigEndian.AppendUint32(nil, number) }

// packValue is a pack's record: sum, length of the name, pages, name, table.
func packValue(number uint32, p pack, table []byte) []byte {
	v := make([]byte, sumSize, sumSize+8+len(p.name)+len(table))
	v = binary.BigEndian.AppendUint32(v, uint32(len(p.name)))
	v = binary.BigEndian.AppendUint32(v, uint32(p.pages))
	return seal(packKey(number), append(append(v, p.name...), table...))
}

func parsePack(name, value []byte) (p pack, table []byte, err error) {
	data, err := unseal(name, value)
	if err != nil || len(name) != 4 || len(data) < 8 {
		return p, nil, errDamaged
	}
	size, pages, rest := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), data[8:]
	if size == 0 || uint64(size) > uint64(len(rest)) {
		return p, nil, errDamaged
	}
	return pack{string(rest[:size]), int(pages)}, rest[size:], nil
}
