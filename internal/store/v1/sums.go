// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/engine"
)

// blockSize is the unit of verification: small enough that one page fault
// reads little, large enough that the table is 0.06 % of the data.
const blockSize = 64 << 10

// blockSum verifies one block.
type blockSum struct {
	strong [32]byte // BLAKE3-256
	cheap  uint32   // CRC-32C
}

const (
	sumsMagic   = "OCSUMS1\n"
	rangesMagic = "OCRNGS1\n"
	sumBytes    = 32 + 4
	rangeBytes  = 4 + 8 + 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumBlock(b []byte) blockSum {
	return blockSum{strong: blake3.Sum256(b), cheap: crc32.Checksum(b, castagnoli)}
}

// blocks is the number of blocks of a file of the size.
func blocks(size int64) int64 { return (size + blockSize - 1) / blockSize }

// encodeSums lays out the tables of all files in manifest order.
func encodeSums(files [][]blockSum) []byte {
	b := []byte(sumsMagic)
	for _, sums := range files {
		for _, s := range sums {
			b = append(b, s.strong[:]...)
			b = binary.LittleEndian.AppendUint32(b, s.cheap)
		}
	}
	return b
}

// decodeSums reads the tables of files of the given sizes.
func decodeSums(b []byte, sizes []int64) ([][]blockSum, error) {
	var total int64
	for _, n := range sizes {
		if n < 0 || n > 1<<50 {
			return nil, errors.New("impossible file size")
		}
		total += blocks(n)
	}
	if len(b) < len(sumsMagic) || string(b[:len(sumsMagic)]) != sumsMagic {
		return nil, errors.New("not a table of block hashes")
	}
	b = b[len(sumsMagic):]
	if total > 1<<40 || int64(len(b)) != total*sumBytes {
		return nil, errors.New("the table of block hashes has the wrong length")
	}
	out := make([][]blockSum, len(sizes))
	for i, n := range sizes {
		out[i] = make([]blockSum, blocks(n))
		for j := range out[i] {
			copy(out[i][j].strong[:], b)
			out[i][j].cheap = binary.LittleEndian.Uint32(b[32:])
			b = b[sumBytes:]
		}
	}
	return out, nil
}

// encodeRanges lays out page identities.
func encodeRanges(rs []engine.PageRange) []byte {
	b := []byte(rangesMagic)
	for _, r := range rs {
		b = binary.LittleEndian.AppendUint32(b, r.Source)
		b = binary.LittleEndian.AppendUint64(b, r.Offset)
		b = binary.LittleEndian.AppendUint64(b, r.Length)
	}
	return b
}

// decodeRanges reads page identities that cover a pages file of the size.
func decodeRanges(b []byte, size int64) ([]engine.PageRange, error) {
	if len(b) < len(rangesMagic) || string(b[:len(rangesMagic)]) != rangesMagic {
		return nil, errors.New("not a table of page identities")
	}
	b = b[len(rangesMagic):]
	if len(b)%rangeBytes != 0 {
		return nil, errors.New("the table of page identities is cut off")
	}
	out := make([]engine.PageRange, 0, len(b)/rangeBytes)
	var total uint64
	for ; len(b) > 0; b = b[rangeBytes:] {
		r := engine.PageRange{
			Source: binary.LittleEndian.Uint32(b),
			Offset: binary.LittleEndian.Uint64(b[4:]),
			Length: binary.LittleEndian.Uint64(b[12:]),
		}
		if r.Length == 0 || r.Length > 1<<50 || total+r.Length > 1<<50 {
			return nil, errors.New("impossible page range")
		}
		total += r.Length
		out = append(out, r)
	}
	if total != uint64(size) {
		return nil, errors.New("the page identities do not cover the pages file")
	}
	return out, nil
}
