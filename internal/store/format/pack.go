// SPDX-License-Identifier: Apache-2.0

package format

import (
	"encoding/binary"

	"github.com/zeebo/blake3"
)

// A pack is
//
//	"OCPACK2\n"
//	stored segments, one behind the other
//	index, perhaps sealed
//	footer: <u32 length of the index> <BLAKE3-256 of the index as it is stored> "OCPEND2\n"
//
// and its index, for each segment,
//
//	<u32 stored size> <u16 pages> <u8 codec> <u8 zero> <BLAKE3-256 of the stored bytes> { <hash of a page> }
const (
	packMagic   = "OCPACK2\n"
	packEnd     = "OCPEND2\n"
	segmentHead = 4 + 2 + 1 + 1 + 32
	// FooterSize is the number of bytes at the end of a pack by which its index
	// is found.
	FooterSize = 4 + 32 + len(packEnd)
	// HeadSize is where the first segment of a pack begins.
	HeadSize = len(packMagic)
)

// PackedSegment is a segment of a pack, in its index.
type PackedSegment struct {
	Size   uint32 // bytes as stored
	Codec  Codec
	Sum    Hash   // BLAKE3-256 of the bytes as stored
	Hashes []Hash // of its pages: identities, not verification
}

// BeginPack gives the first bytes of a pack.
func BeginPack(b []byte) []byte { return append(b, packMagic...) }

// EncodeIndex gives a pack's index, which may then be sealed.
func EncodeIndex(segments []PackedSegment) []byte {
	n := 0
	for _, s := range segments {
		n += segmentHead + len(s.Hashes)*len(Hash{})
	}
	b := make([]byte, 0, n)
	for _, s := range segments {
		b = binary.LittleEndian.AppendUint32(b, s.Size)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s.Hashes)))
		b = append(b, byte(s.Codec), 0)
		b = append(b, s.Sum[:]...)
		for _, h := range s.Hashes {
			b = append(b, h[:]...)
		}
	}
	return b
}

// EndPack appends the index as it is stored, and the footer.
func EndPack(b, index []byte) []byte {
	sum := blake3.Sum256(index)
	b = append(b, index...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(index)))
	b = append(b, sum[:]...)
	return append(b, packEnd...)
}

// Footer tells where the index of a pack of the size is, and its hash as it is
// stored; tail is the pack's last FooterSize bytes.
func Footer(tail []byte, packSize int64) (offset int64, size int, sum Hash, err error) {
	if len(tail) != FooterSize || packSize < int64(FooterSize) || string(tail[36:]) != packEnd {
		return 0, 0, sum, malformed("a pack without an end")
	}
	size = int(binary.LittleEndian.Uint32(tail))
	copy(sum[:], tail[4:])
	if offset = packSize - int64(FooterSize) - int64(size); offset < int64(HeadSize) {
		return 0, 0, sum, malformed("a pack of %d bytes with an index of %d", packSize, size)
	}
	return offset, size, sum, nil
}

// DecodeIndex reads the index of a pack whose segments end at an offset.
func DecodeIndex(b []byte, end int64) ([]PackedSegment, error) {
	var out []PackedSegment
	at := int64(HeadSize)
	for len(b) > 0 {
		if len(b) < segmentHead {
			return nil, malformed("an index that is cut off")
		}
		n := int(binary.LittleEndian.Uint16(b[4:]))
		s := PackedSegment{Size: binary.LittleEndian.Uint32(b), Codec: Codec(b[6])}
		copy(s.Sum[:], b[8:])
		if b[7] != 0 || n == 0 || n > MaxSegmentPages || s.Size > maxStored || s.Codec > Zstd {
			return nil, malformed("an index with an impossible segment")
		}
		if b = b[segmentHead:]; len(b) < n*len(Hash{}) {
			return nil, malformed("an index that is cut off")
		}
		s.Hashes = make([]Hash, n)
		for i := range s.Hashes {
			b = b[copy(s.Hashes[i][:], b):]
		}
		at += int64(s.Size)
		out = append(out, s)
	}
	if at != end {
		return nil, malformed("an index that does not describe its pack")
	}
	return out, nil
}
