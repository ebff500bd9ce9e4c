// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/opencomputer/oc/internal/engine"
)

// The files of a parcel.
const (
	FileEngine = "engine" // the oc binary whose engine wrote the state
	FileImage  = "image"  // the root file system it runs on
	FileState  = "state"  // the engine's object graph
	FileMeta   = "meta"   // the engine's page map
	FilePages  = "pages"  // page contents
)

// names are the files in the order in which they are in the stream.
var names = [...]string{FileEngine, FileImage, FileState, FileMeta, FilePages}

const (
	// magic has a line end in it to show a copy that was taken for text.
	magic = "OCPORT\r\n"

	// version of the format that is written, and the newest that is read.
	version = 1

	// maxFrame is the most contents in a frame: small against memory, large
	// enough to compress well by itself.
	maxFrame = 1 << 20

	// maxPacked is the most bytes that a frame's contents take compressed;
	// Zstandard adds 3 bytes to each 128 KiB of what it cannot compress.
	maxPacked = maxFrame + 4<<10

	// MaxManifest is the size of the largest manifest, in bytes.
	MaxManifest = 1 << 20

	// maxRanges allows for every other page of 256 GiB to be a range.
	maxRanges = 1 << 25

	// maxFile bounds the size that may be claimed for a file, in bytes.
	maxFile = 1 << 50

	sumBytes   = 32 // BLAKE3-256
	rangeBytes = 4 + 8 + 8
)

// head is what precedes the files in the contents: the table of what is in the
// file, and the page identities. The first has a hash of its own, so that what
// it says can be judged at once: a wrong size is damage, not too large.
type head struct {
	manifest []byte
	sizes    [len(names)]int64
	ranges   []engine.PageRange
}

// total is the size of all files, in bytes.
func (h *head) total() (n int64) {
	for _, size := range h.sizes {
		n += size
	}
	return n
}

func (h *head) pages() int64 { return h.sizes[len(names)-1] }

func (h *head) writeTable(w io.Writer) error {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(h.manifest)))
	b = append(b, h.manifest...)
	b = append(b, byte(len(names)))
	for i, name := range names {
		b = append(append(b, byte(len(name))), name...)
		b = binary.LittleEndian.AppendUint64(b, uint64(h.sizes[i]))
	}
	_, err := w.Write(b)
	return err
}

func (h *head) writeRanges(w io.Writer) error {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(h.ranges)))
	for _, r := range h.ranges {
		if len(b) >= maxFrame { // they can be many: in pieces
			if _, err := w.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
		b = binary.LittleEndian.AppendUint32(b, r.Source)
		b = binary.LittleEndian.AppendUint64(b, r.Offset)
		b = binary.LittleEndian.AppendUint64(b, r.Length)
	}
	_, err := w.Write(b)
	return err
}

func (h *head) readTable(r io.Reader) error {
	n, err := readUint32(r)
	if err != nil {
		return err
	}
	if n > MaxManifest {
		return damaged("its manifest is said to have %d bytes", n)
	}
	h.manifest = make([]byte, n)
	if _, err := io.ReadFull(r, h.manifest); err != nil {
		return err
	}
	var b [256]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return err
	}
	if int(b[0]) != len(names) {
		return damaged("it is said to have %d files instead of %d", b[0], len(names))
	}
	for i, want := range names {
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return err
		}
		name := b[:b[0]]
		if _, err := io.ReadFull(r, name); err != nil {
			return err
		}
		if string(name) != want {
			return damaged("it has a file %q where %q should be", name, want)
		}
		if _, err := io.ReadFull(r, b[:8]); err != nil {
			return err
		}
		size := binary.LittleEndian.Uint64(b[:])
		if size > maxFile {
			return damaged("its file %q is said to have %d bytes", want, size)
		}
		h.sizes[i] = int64(size)
	}
	return nil
}

// readRanges reads the page identities; they take memory only as they come.
func (h *head) readRanges(r io.Reader) error {
	left, err := readUint32(r)
	if err != nil {
		return err
	}
	if left > maxRanges || int64(left) > h.pages()/engine.PageSize {
		return damaged("it is said to have %d page identities for %d bytes of pages", left, h.pages())
	}
	b := make([]byte, rangeBytes*min(left, 4096))
	for left > 0 {
		b = b[:rangeBytes*min(left, 4096)]
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		for ; len(b) > 0; b = b[rangeBytes:] {
			h.ranges = append(h.ranges, engine.PageRange{
				Source: binary.LittleEndian.Uint32(b),
				Offset: binary.LittleEndian.Uint64(b[4:]),
				Length: binary.LittleEndian.Uint64(b[12:]),
			})
			left--
		}
	}
	if err := checkRanges(h.ranges, h.pages()); err != nil {
		return damaged("%v", err)
	}
	return nil
}

// checkRanges tells whether the ranges are of whole pages and cover a pages
// file of the size.
func checkRanges(rs []engine.PageRange, size int64) error {
	if len(rs) > maxRanges {
		return fmt.Errorf("%d page ranges are too many", len(rs))
	}
	var total uint64
	for _, r := range rs {
		if r.Length == 0 || r.Length > maxFile || r.Offset > 1<<62 || (r.Offset|r.Length)%engine.PageSize != 0 {
			return fmt.Errorf("impossible page range of %d bytes at %d", r.Length, r.Offset)
		}
		if total += r.Length; total > maxFile {
			break
		}
	}
	if total != uint64(size) {
		return errors.New("the page identities do not cover the pages")
	}
	return nil
}

func readUint32(r io.Reader) (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(r, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}
