// SPDX-License-Identifier: Apache-2.0

package index

import (
	"bytes"
	"encoding/binary"
	"slices"

	"go.etcd.io/bbolt"
)

// wanted is a hash that is looked for.
type wanted struct {
	key
	i int // in the caller's list; negative once it is found
}

// hit is a hash that was found.
type hit struct {
	i  int
	at Location
}

// Lookup calls found for each of the hashes that some pack has, with its index
// in hashes, in no certain order. It reads the file in one transaction; found is
// called after it, so it may call the index, and a pack may be gone by then.
func (ix *Index) Lookup(hashes [][32]byte, found func(i int, at Location)) {
	var hits []hit
	ix.read(func(tx *bbolt.Tx) error {
		want := ix.pass(hashes)
		hits = make([]hit, 0, len(want))
		c := tx.Bucket(blocksBucket).Cursor()
		for _, r := range slices.Backward(ix.runs) {
			if len(want) == 0 {
				break
			}
			var err error
			if hits, err = ix.search(c, r, want, hits); err != nil {
				return err // what was found is right all the same
			}
			want = slices.DeleteFunc(want, func(w wanted) bool { return w.i < 0 })
		}
		return nil
	})
	for _, h := range hits {
		found(h.i, h.at)
	}
}

// pass gives the hashes that the filter lets through, ascending.
func (ix *Index) pass(hashes [][32]byte) []wanted {
	var want []wanted
	for i := range hashes {
		if k := keyOf(hashes[i][:]); ix.filter.has(k) {
			want = append(want, wanted{k, i})
		}
	}
	slices.SortFunc(want, func(a, b wanted) int { return a.compare(b.key) })
	return want
}

// search looks for hashes in a run, marks and adds those that it finds. It goes
// through both in order, and reads a block only if it can have one of them.
func (ix *Index) search(c *bbolt.Cursor, r run, want []wanted, hits []hit) ([]hit, error) {
	prefix := binary.BigEndian.AppendUint32(nil, r.number)
	k, v := c.Seek(seekKey(r.number, want[0].key))
	for bytes.HasPrefix(k, prefix) {
		b, last, err := parseBlock(k, v)
		if err != nil {
			return hits, err
		}
		hits = ix.join(b, want, hits)
		for len(want) > 0 && want[0].compare(last) < 0 {
			want = want[1:]
		}
		if len(want) == 0 {
			break
		}
		// The next block may begin with more of the last key.
		k, v = c.Next()
		if bytes.HasPrefix(k, prefix) && bytes.Compare(k, seekKey(r.number, want[0].key)) < 0 {
			k, v = c.Seek(seekKey(r.number, want[0].key))
		}
	}
	return hits, nil
}

// join finds hashes in a block.
func (ix *Index) join(b block, want []wanted, hits []hit) []hit {
	at := 0
	for j := range want {
		w := &want[j]
		if at = b.search(w.key, at); at == b.len() {
			break
		}
		for n := at; w.i >= 0 && n < b.len() && b.key(n) == w.key; n++ {
			e := b.entry(n)
			if _, ok := ix.packs[e.pack()]; ok {
				hits = append(hits, hit{w.i, e.location()})
				w.i = -1
			}
		}
	}
	return hits
}
