// SPDX-License-Identifier: Apache-2.0

// Package format is the bytes of the page store's objects, second format, as
// docs/format.md has them: packs of segments, the table of a checkpoint's pages
// and the cheap hashes of them. It encodes and decodes; where the bytes are, what
// they are sealed with and why they are wanted is not its business.
//
// Invariants: a decoder takes any bytes, allocates no more than in proportion to
// their number, and gives either what an encoder was given or ErrFormat; what it
// accepts encodes to the same bytes again.
package format

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// PageSize is the unit of everything, in bytes.
const PageSize = 4096

// SegmentPages is how many pages a writer compresses together: large enough to
// compress well, small enough to be read for a single page.
const SegmentPages = 64

// MaxSegmentPages is how many a reader accepts.
const MaxSegmentPages = 1024

// maxStored is how many bytes of a segment as stored a reader accepts: its pages,
// and what sealing adds.
const maxStored = MaxSegmentPages*PageSize + PageSize

// ErrFormat says that bytes are not what they should be; it is wrapped with what
// is wrong.
var ErrFormat = errors.New("not in the format of the store")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Hash identifies the contents of a page (a keyed hash) or verifies stored bytes.
type Hash = [32]byte

// Codec is how the pages of a segment are stored.
type Codec uint8

// The codecs.
const (
	Raw  Codec = 0 // as they are
	Zstd Codec = 1 // one zstd frame (RFC 8878)
)

// cursor reads numbers, and remembers that there were too few bytes, or a number
// in more bytes than it needs: every list has one encoding.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 || n > 1 && c.b[n-1] == 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) int() int64 {
	v := c.uint()
	return int64(v>>1) ^ -int64(v&1)
}

// size is a number that must not be above limit.
func (c *cursor) size(limit uint64) int64 {
	v := c.uint()
	if v > limit {
		c.bad = true
		return 0
	}
	return int64(v)
}

// count is the number of entries of at least each bytes that follow.
func (c *cursor) count(each int) int {
	return int(c.size(uint64(len(c.b) / each)))
}

func (c *cursor) bytes(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.bad, c.b = true, nil
		return make([]byte, max(min(n, 32), 0))
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func appendInt(b []byte, v int64) []byte {
	return binary.AppendUvarint(b, uint64(v)<<1^uint64(v>>63))
}
