// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// Limits bound what Read takes.
type Limits struct {
	Bytes int64 // of all files together, uncompressed; 0: as much as the disk has room for
}

// Received is what was in a file. It is verified.
type Received struct {
	Manifest []byte             // as given to Write
	Ranges   []engine.PageRange // of FilePages, in order; whole pages
	Files    map[string]*os.File
}

// Close closes the files, which have no names any more: their space is free
// then.
func (r *Received) Close() {
	for _, f := range r.Files {
		_ = f.Close() // nobody needs what was written any longer
	}
}

// Read reads what Write wrote, to its end, which must be the end of r. The
// files are in the file system of dir, without names, with holes where they
// are zero, and positioned at their beginnings. progress, if not nil, is told
// the bytes of the files that were read so far and in all, uncompressed.
//
// What is wrong with the file, or too large for the limits, is an Invalid
// fault; a disk without room is an Unavailable one; errors of r are wrapped.
// The caller's goroutine alone calls r and progress; when ctx ends Read fails
// before the next frame, but does not break off a call of r.
func Read(ctx context.Context, r io.Reader, dir string, limits Limits, progress func(done, total int64)) (_ *Received, err error) {
	u, err := newUnpacker(ctx, r)
	if err != nil {
		return nil, err
	}
	defer u.close()
	h := new(head)
	if err := u.section("table", h.readTable); err != nil {
		return nil, err
	}
	if err := checkRoom(h.total(), dir, limits); err != nil {
		return nil, err
	}
	if err := u.section("ranges", h.readRanges); err != nil {
		return nil, err
	}
	rec := &Received{Manifest: h.manifest, Ranges: h.ranges, Files: map[string]*os.File{}}
	defer func() {
		if err != nil {
			rec.Close()
		}
	}()
	var done int64
	count := func(n int) {
		if done += int64(n); progress != nil {
			progress(done, h.total())
		}
	}
	for i, name := range names {
		f, err := newSpool(dir)
		if err != nil {
			return nil, err
		}
		rec.Files[name] = f
		err = u.section(name, func(r io.Reader) error { return spool(f, r, h.sizes[i], count) })
		if err != nil {
			return nil, err
		}
	}
	if err := u.finish(); err != nil {
		return nil, err
	}
	return rec, nil
}

// damaged says that the file is not what was written.
func damaged(format string, args ...any) *fault.Fault {
	return fault.New(fault.Invalid, "the checkpoint file is damaged: %s", fmt.Sprintf(format, args...)).
		WithHint("copy it again, or export the checkpoint again")
}

func endsEarly() *fault.Fault {
	return fault.New(fault.Invalid, "the checkpoint file ends early: it was not copied completely").
		WithHint("copy it again, or export the checkpoint again")
}

// unpacker is the reader of the contents. It reads ahead, no more than a few
// frames, to have them decompressed on all CPUs.
type unpacker struct {
	ctx   context.Context
	r     io.Reader
	seal  hash.Hash // of all that came from r
	zstd  *zstd.Decoder
	ring  ring
	rest  []byte // what is left of the frame taken last
	ended bool   // the last frame was read
}

// newUnpacker reads the header.
func newUnpacker(ctx context.Context, r io.Reader) (*unpacker, error) {
	u := &unpacker{ctx: ctx, r: r, seal: blake3.New(), ring: newRing()}
	var b [len(magic) + 4]byte
	n, err := u.readFull(b[:])
	if known := min(n, len(magic)); string(b[:known]) != magic[:known] {
		return nil, fault.New(fault.Invalid, "this is not a checkpoint file").
			WithHint("give a file that `oc checkpoint export` wrote, as it wrote it")
	}
	if err != nil {
		return nil, err
	}
	switch v := binary.LittleEndian.Uint32(b[len(magic):]); {
	case v > version:
		return nil, fault.New(fault.Invalid, "the checkpoint file has format version %d; this release reads up to %d", v, version).
			WithHint("upgrade oc")
	case v == 0:
		return nil, damaged("it has format version 0")
	}
	u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers()), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("portable: %w", err)
	}
	return u, nil
}

// close ends the work of other goroutines.
func (u *unpacker) close() {
	u.ring.wait()
	u.zstd.Close()
}

// section has the contents read by use and checks their hash behind them.
func (u *unpacker) section(name string, use func(io.Reader) error) error {
	sum := blake3.New()
	err := use(io.TeeReader(u, sum))
	var want [sumBytes]byte
	if err == nil {
		_, err = io.ReadFull(u, want[:])
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return damaged("it has less in it than it says")
	case err != nil:
		return err
	case !bytes.Equal(sum.Sum(nil), want[:]):
		return damaged("its part %q does not match its hash", name)
	}
	return nil
}

// Read implements io.Reader; io.EOF is the end of the contents.
func (u *unpacker) Read(b []byte) (int, error) {
	for len(u.rest) == 0 { // so that the frame it was of may be used again
		if err := u.ctx.Err(); err != nil {
			return 0, fmt.Errorf("portable: reading a checkpoint file: %w", err)
		}
		for !u.ended && !u.ring.full() {
			if err := u.fetch(); err != nil {
				return 0, err
			}
		}
		if u.ring.busy == 0 {
			return 0, io.EOF
		}
		f := u.ring.take()
		if f.err != nil {
			return 0, f.err
		}
		u.rest = f.raw
	}
	n := copy(b, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

// fetch reads a frame and has it decompressed.
func (u *unpacker) fetch() error {
	var b [frameHeader]byte
	if _, err := u.readFull(b[:]); err != nil {
		return err
	}
	raw, packed := binary.LittleEndian.Uint32(b[:]), binary.LittleEndian.Uint32(b[4:])
	if raw == 0 && packed == 0 {
		u.ended = true
		return nil
	}
	if raw == 0 || raw > maxFrame || packed == 0 || packed > maxPacked {
		return damaged("it has a frame of %d bytes in %d", raw, packed)
	}
	f := u.ring.free()
	if f.packed == nil {
		f.packed = make([]byte, maxPacked)
	}
	if cap(f.raw) < int(raw) {
		f.raw = make([]byte, raw)
	}
	if _, err := u.readFull(f.packed[:packed]); err != nil {
		return err
	}
	u.ring.start(func(f *frame) {
		var err error // the capacity is the limit: see newUnpacker
		f.raw, err = u.zstd.DecodeAll(f.packed[:packed], f.raw[:0:raw])
		if err != nil || len(f.raw) != int(raw) {
			f.err = damaged("a frame of it cannot be decompressed")
		}
	})
	return nil
}

// finish checks that nothing follows but the right seal.
func (u *unpacker) finish() error {
	switch _, err := io.ReadFull(u, make([]byte, 1)); {
	case err == nil:
		return damaged("it has more in it than it says")
	case !errors.Is(err, io.EOF):
		return err
	}
	seal := u.seal.Sum(nil)
	var b [sumBytes]byte
	if _, err := u.readFull(b[:]); err != nil {
		return err
	}
	if !bytes.Equal(b[:], seal) {
		return damaged("it does not match its hash")
	}
	switch _, err := io.ReadFull(u.r, b[:1]); {
	case err == nil:
		return damaged("something follows behind its end")
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("portable: reading a checkpoint file: %w", err)
	}
	return nil
}

// readFull fills b from r.
func (u *unpacker) readFull(b []byte) (int, error) {
	n, err := io.ReadFull(u.r, b)
	u.seal.Write(b[:n])
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return n, endsEarly()
	case err != nil:
		return n, fmt.Errorf("portable: reading a checkpoint file: %w", err)
	}
	return n, nil
}
