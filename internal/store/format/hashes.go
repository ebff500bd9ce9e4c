// SPDX-License-Identifier: Apache-2.0

package format

import "encoding/binary"

// hashesMagic begins the object of cheap hashes:
//
//	"OCHASH2\n" <u64 seed> { <u64 XXH3-64, with the seed, of a page of the pages file that is not all zero> }
const hashesMagic = "OCHASH2\n"

// EncodeHashes gives the bytes of the cheap hashes of a checkpoint's pages.
func EncodeHashes(seed uint64, hashes []uint64) []byte {
	b := make([]byte, 0, len(hashesMagic)+8+8*len(hashes))
	b = append(b, hashesMagic...)
	b = binary.LittleEndian.AppendUint64(b, seed)
	for _, h := range hashes {
		b = binary.LittleEndian.AppendUint64(b, h)
	}
	return b
}

// DecodeHashes reads them; there must be n.
func DecodeHashes(b []byte, n int64) (seed uint64, hashes []uint64, err error) {
	const head = len(hashesMagic) + 8
	if len(b) < head || string(b[:len(hashesMagic)]) != hashesMagic || (len(b)-head)%8 != 0 || int64(len(b)-head)/8 != n {
		return 0, nil, malformed("not the hashes of %d pages", n)
	}
	seed = binary.LittleEndian.Uint64(b[len(hashesMagic):])
	hashes = make([]uint64, n)
	for i := range hashes {
		hashes[i] = binary.LittleEndian.Uint64(b[head+8*i:])
	}
	return seed, hashes, nil
}
