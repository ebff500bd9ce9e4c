// SPDX-License-Identifier: Apache-2.0

package index

import (
	"cmp"
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// key is the part of a page's hash that the index has: the first 16 bytes.
type key struct{ hi, lo uint64 }

func keyOf(hash []byte) key {
	return key{binary.BigEndian.Uint64(hash), binary.BigEndian.Uint64(hash[8:])}
}

func (a key) compare(b key) int {
	if a.hi != b.hi {
		return cmp.Compare(a.hi, b.hi)
	}
	return cmp.Compare(a.lo, b.lo)
}

// entry is a key and where its page is.
type entry struct {
	key
	at uint64 // pack<<36 | segment<<12 | slot
}

func (e entry) pack() uint32 { return uint32(e.at >> 36) }

func (e entry) location() Location {
	return Location{Pack: e.pack(), Segment: int(e.at >> 12 & (MaxSegments - 1)), Slot: int(e.at & (MaxSlots - 1))}
}

// Stored data begin with a sum that is bound to their key in the file, so that
// bytes which the file has lost or mixed up are never believed.
const sumSize = 8

func sumOf(name, data []byte) uint64 { return xxh3.Hash(data) ^ xxh3.Hash(name) }

// seal puts the sum into the first bytes of a value, which are free for it.
func seal(name, value []byte) []byte {
	binary.LittleEndian.PutUint64(value, sumOf(name, value[sumSize:]))
	return value
}

// unseal gives the data of a value.
func unseal(name, value []byte) ([]byte, error) {
	if len(value) < sumSize || binary.LittleEndian.Uint64(value) != sumOf(name, value[sumSize:]) {
		return nil, errDamaged
	}
	return value[sumSize:], nil
}

// A block is a value with up to blockEntries entries of one run, ascending, 24
// bytes each. Its key is the run, the key of its last entry, and its number in
// the run, big endian: so seeking the run and a hash finds the one block that
// can have the hash, or the first of several.
const (
	entrySize    = 24
	blockEntries = 1360
	blockKey     = 4 + 16 + 4
)

type block []byte

func (b block) len() int        { return len(b) / entrySize }
func (b block) key(i int) key   { return keyOf(b[i*entrySize:]) }
func (b block) at(i int) uint64 { return binary.LittleEndian.Uint64(b[i*entrySize+16:]) }

func (b block) entry(i int) entry { return entry{b.key(i), b.at(i)} }

// search gives the first entry at or after i whose key is not below k.
func (b block) search(k key, i int) int {
	lo, hi := i, b.len()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if b.key(mid).compare(k) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// makeBlock makes the key and the value of a block.
func makeBlock(run uint32, number int, entries []entry) (name, value []byte) {
	last := entries[len(entries)-1].key
	name = binary.BigEndian.AppendUint32(seekKey(run, last), uint32(number))
	value = make([]byte, sumSize, sumSize+len(entries)*entrySize)
	for _, e := range entries {
		value = binary.BigEndian.AppendUint64(value, e.hi)
		value = binary.BigEndian.AppendUint64(value, e.lo)
		value = binary.LittleEndian.AppendUint64(value, e.at)
	}
	return name, seal(name, value)
}

// seekKey is what all keys of blocks that can have k are not below.
func seekKey(run uint32, k key) []byte {
	b := make([]byte, 0, blockKey)
	b = binary.BigEndian.AppendUint32(b, run)
	b = binary.BigEndian.AppendUint64(b, k.hi)
	return binary.BigEndian.AppendUint64(b, k.lo)
}

// parseBlock checks a block and gives its last key.
func parseBlock(name, value []byte) (block, key, error) {
	data, err := unseal(name, value)
	if err != nil || len(name) != blockKey || len(data) == 0 || len(data)%entrySize != 0 {
		return nil, key{}, errDamaged
	}
	return block(data), keyOf(name[4:]), nil
}

// merge gives the entries of two ascending lists in order.
func merge(a, b []entry) []entry {
	out := make([]entry, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].compare(b[0].key) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}
