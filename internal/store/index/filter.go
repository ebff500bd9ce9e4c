// SPDX-License-Identifier: Apache-2.0

package index

import "math/bits"

// filter is a blocked Bloom filter of hashes: one cache line a hash. It never
// says no to a hash that was added.
type filter []uint64

const (
	lineWords = 8 // 64 bytes
	probes    = 6 // of 9 bits each, all from the low half of a hash
	minFilter = 64 << 10
)

// newFilter makes a filter with 16 bits for each hash; about one of 600 absent
// hashes passes. At 8 bits, when full tells to make a larger one, one of 30.
func newFilter(hashes int) filter {
	return make(filter, (max(2*hashes, minFilter)+63)/64*lineWords)
}

// full tells whether a filter is too small for a number of hashes.
func (f filter) full(hashes int) bool { return hashes > len(f)*8 }

// line gives the words of a hash. Hashes in ascending order walk through the
// filter in order.
func (f filter) line(h key) filter {
	at, _ := bits.Mul64(h.hi, uint64(len(f)/lineWords))
	return f[at*lineWords:][:lineWords]
}

func (f filter) add(h key) {
	line := f.line(h)
	for i, x := 0, h.lo; i < probes; i, x = i+1, x>>9 {
		line[x>>6&7] |= 1 << (x & 63)
	}
}

func (f filter) has(h key) bool {
	line := f.line(h)
	for i, x := 0, h.lo; i < probes; i, x = i+1, x>>9 {
		if line[x>>6&7]&(1<<(x&63)) == 0 {
			return false
		}
	}
	return true
}
