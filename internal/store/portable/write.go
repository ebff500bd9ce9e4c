// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/engine"
)

// Parcel is what goes into the file.
type Parcel struct {
	Manifest []byte             // at most MaxManifest bytes, not looked into
	Ranges   []engine.PageRange // of FilePages, in order
	Files    []File             // FileEngine, FileImage, FileState, FileMeta, FilePages, in this order
}

// File is a file of a Parcel.
type File struct {
	Name string
	Size int64 // bytes

	// Copy writes the Size bytes of the file to w. It is called once. It need
	// not look at ctx where it only waits for w, which fails when ctx ends.
	Copy func(ctx context.Context, w io.Writer) error
}

// Write writes the parcel to w, compressed on all CPUs. The same parcel gives
// the same bytes. progress, if not nil, is told the bytes of the files that
// were written so far and in all, uncompressed; and, before the first byte of w,
// that in all: w takes hardly more.
//
// The caller's goroutine alone calls w, Copy and progress; when ctx ends Write
// fails before its next call of w. What an error leaves in w is noticed by
// Read.
func Write(ctx context.Context, w io.Writer, p Parcel, progress func(done, total int64)) error {
	h, err := p.head()
	if err != nil {
		return fmt.Errorf("portable: %w", err)
	}
	pk, err := newPacker(ctx, w)
	if err != nil {
		return fmt.Errorf("portable: %w", err)
	}
	defer pk.close()
	if progress != nil {
		progress(0, h.total())
		pk.progress = func(done int64) { progress(done, h.total()) }
	}
	if err := pk.writeParcel(h, p.Files); err != nil {
		return fmt.Errorf("portable: writing a checkpoint: %w", err)
	}
	return nil
}

// head checks the parcel.
func (p *Parcel) head() (*head, error) {
	h := &head{manifest: p.Manifest, ranges: p.Ranges}
	if len(p.Manifest) > MaxManifest {
		return nil, fmt.Errorf("a manifest of %d bytes is too large", len(p.Manifest))
	}
	if len(p.Files) != len(names) {
		return nil, fmt.Errorf("%d files instead of %d", len(p.Files), len(names))
	}
	for i, f := range p.Files {
		if f.Name != names[i] || f.Size < 0 || f.Size > maxFile {
			return nil, fmt.Errorf("a file %q of %d bytes where %q should be", f.Name, f.Size, names[i])
		}
		h.sizes[i] = f.Size
	}
	return h, checkRanges(h.ranges, h.pages())
}

// packer is the contents' writer: it cuts them into frames and writes these
// compressed, and the hash of all of it at the end.
type packer struct {
	ctx      context.Context
	w        io.Writer
	seal     hash.Hash // of all that went to w
	zstd     *zstd.Encoder
	ring     ring  // the free frame is the one being filled
	inFile   bool  // what comes counts as progress
	done     int64 // bytes of files that came
	progress func(done int64)
	err      error // the first, given again by each further Write
}

func newPacker(ctx context.Context, w io.Writer) (*packer, error) {
	// Hashes stronger than Zstandard's own are taken anyway.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(maxFrame), zstd.WithEncoderConcurrency(workers()))
	if err != nil {
		return nil, err
	}
	return &packer{ctx: ctx, w: w, seal: blake3.New(), zstd: enc, ring: newRing()}, nil
}

// close ends the work of other goroutines.
func (p *packer) close() {
	p.ring.wait()
	_ = p.zstd.Close() // has no stream to end
}

func (p *packer) writeParcel(h *head, files []File) error {
	if err := p.put(binary.LittleEndian.AppendUint32([]byte(magic), version)); err != nil {
		return err
	}
	if err := p.section(h.writeTable); err != nil {
		return err
	}
	if err := p.section(h.writeRanges); err != nil {
		return err
	}
	for _, f := range files {
		p.inFile = true
		err := p.section(func(w io.Writer) error {
			s := &sized{w: w, left: f.Size}
			if err := f.Copy(p.ctx, s); err != nil {
				return fmt.Errorf("file %q: %w", f.Name, err)
			}
			if s.left != 0 || s.over {
				return fmt.Errorf("file %q has other than the %d bytes it should have", f.Name, f.Size)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return p.finish()
}

// section has the contents written by fill and appends their hash.
func (p *packer) section(fill func(io.Writer) error) error {
	sum := blake3.New()
	err := fill(io.MultiWriter(p, sum))
	p.inFile = false
	if err == nil {
		err = p.err // which fill may have passed over
	}
	if err == nil {
		_, err = p.Write(sum.Sum(nil))
	}
	return err
}

// Write implements io.Writer.
func (p *packer) Write(b []byte) (n int, err error) {
	for n < len(b) && p.err == nil {
		f := p.ring.free()
		k := min(len(b)-n, maxFrame-len(f.raw))
		f.raw = append(f.raw, b[n:n+k]...)
		n += k
		if p.inFile {
			p.done += int64(k)
		}
		if len(f.raw) == maxFrame {
			p.err = p.pack()
		}
	}
	return n, p.err
}

// pack has the frame that was filled compressed, and makes sure that another
// one is free.
func (p *packer) pack() error {
	p.ring.free().done = p.done
	p.ring.start(func(f *frame) {
		var header [frameHeader]byte
		b := p.zstd.EncodeAll(f.raw, append(f.packed[:0], header[:]...))
		binary.LittleEndian.PutUint32(b, uint32(len(f.raw)))
		binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-frameHeader))
		f.packed = b
	})
	if p.ring.full() {
		return p.emit()
	}
	return nil
}

// emit writes the oldest frame.
func (p *packer) emit() error {
	f := p.ring.take()
	f.raw = f.raw[:0]
	if err := p.put(f.packed); err != nil {
		return err
	}
	if p.progress != nil && f.done > 0 {
		p.progress(f.done)
	}
	return nil
}

func (p *packer) put(b []byte) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	p.seal.Write(b)
	_, err := p.w.Write(b)
	return err
}

// finish writes what is left, the end and the seal.
func (p *packer) finish() error {
	if len(p.ring.free().raw) > 0 {
		if err := p.pack(); err != nil {
			return err
		}
	}
	for p.ring.busy > 0 {
		if err := p.emit(); err != nil {
			return err
		}
	}
	if err := p.put(make([]byte, frameHeader)); err != nil {
		return err
	}
	return p.put(p.seal.Sum(nil))
}

// sized takes as many bytes as a file should have.
type sized struct {
	w    io.Writer
	left int64
	over bool // there were more
}

func (s *sized) Write(b []byte) (int, error) {
	if int64(len(b)) > s.left {
		s.over = true
		return 0, errors.New("more bytes than it should have")
	}
	s.left -= int64(len(b))
	return s.w.Write(b)
}
