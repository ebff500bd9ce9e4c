// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/store/format"
)

// Image is an opened checkpoint of the page store. It implements Checkpoint.
type Image struct {
	id       string // of its object
	manifest *Manifest
	table    *format.Table
	ranges   []engine.PageRange
	vault    *vault
	ctx      context.Context // of reads, ends with Close
	cancel   context.CancelFunc
	release  func()
	packs    []*cached // by number in the table
	proven   proven
	recent   recent
	hot      *hot // nil: first reads are not remembered
	warming  sync.WaitGroup

	mu    sync.Mutex
	base  *engine.Base // nil until it is asked for
	cheap *cheapHashes // the same
	next  int          // segment at which reading ahead goes on
}

// setTable completes the image.
func (im *Image) setTable(t *format.Table) {
	im.table, im.proven = t, newProven(len(t.Segments))
	im.recent.widen(1)
	im.ranges = make([]engine.PageRange, len(t.Ranges))
	for i, r := range t.Ranges {
		im.ranges[i] = engine.PageRange(r)
	}
	im.packs = make([]*cached, len(t.Packs))
	for i, name := range t.Packs {
		im.packs[i] = im.vault.pack(name)
	}
}

// ID of the checkpoint's object in the store.
func (im *Image) ID() string { return im.id }

// Manifest implements Checkpoint.
func (im *Image) Manifest() *Manifest { return im.manifest }

// Ranges implements Checkpoint.
func (im *Image) Ranges() []engine.PageRange { return im.ranges }

// Close implements Checkpoint; it ends the claim on the data.
func (im *Image) Close() {
	im.leaveHot()
	im.cancel()
	im.warming.Wait()
	for _, p := range im.packs {
		p.close()
	}
	if im.release != nil {
		im.release()
	}
}

// Share prepares for so many who read the image at once. It is called before the
// first read.
func (im *Image) Share(readers int) { im.recent.widen(readers) }

// File implements Checkpoint.
func (im *Image) File(name string) File {
	return &imageFile{im: im, file: slices.Index(fileNames, name)}
}

// Bulk is the FilePages for reads that nobody waits for.
func (im *Image) Bulk() File { return &imageFile{im: im, file: pagesFile, bulk: true} }

// maxZeros bounds the pages of a base that are all zero: a table can claim any
// number of them, and each takes room in memory. It is that of 64 GiB.
const maxZeros = 16 << 20

// Base gives the identities and cheap hashes of the pages, for the next capture
// of a state that descends from this one.
func (im *Image) Base(ctx context.Context) (*engine.Base, error) {
	if kept := im.vault.bases.get(im.id); kept != nil {
		return kept, nil
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.loadBase(ctx)
}

// loadBase is Base from what is stored, verified. It must be called with mu held.
func (im *Image) loadBase(ctx context.Context) (*engine.Base, error) {
	if im.base != nil {
		return im.base, nil
	}
	raw, err := im.vault.object(ctx, im.manifest.Checkpoint, im.manifest.Hashes)
	if err != nil {
		return nil, err
	}
	f := &im.table.Files[pagesFile]
	n := int64(0)
	for i, r := range f.Runs {
		if r.Segment != format.Zero {
			n += f.End(i) - r.Page
		}
	}
	seed, hashes, err := format.DecodeHashes(raw, n)
	if err != nil {
		return nil, Damaged(im.manifest.Checkpoint, "its table of hashes: %v", err)
	}
	if zeros := f.Pages() - n; zeros > maxZeros { // of which nothing had to be stored
		return nil, Damaged(im.manifest.Checkpoint, "its table has %d pages that are all zero, more than a sandbox has", zeros)
	}
	all := make([]uint64, f.Pages())
	zero := zeroHash(seed)
	for i, r := range f.Runs {
		for p := r.Page; p < f.End(i); p++ {
			if all[p] = zero; r.Segment != format.Zero {
				all[p], hashes = hashes[0], hashes[1:]
			}
		}
	}
	im.base = &engine.Base{Ranges: im.ranges, Hashes: all, Seed: seed}
	return im.base, nil
}

// File is a file of a checkpoint; what is read of it is verified.
type File interface {
	io.ReaderAt
	// Size in bytes.
	Size() int64
}

type imageFile struct {
	im   *Image
	file int
	bulk bool // nobody waits for what is read
}

func (f *imageFile) Size() int64 { return f.im.table.Files[f.file].Size }

// ReadAt implements io.ReaderAt; what it returns is verified.
func (f *imageFile) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("store: negative offset %d", off)
	}
	if rest := f.Size() - off; int64(len(p)) > rest {
		p, err = p[:max(rest, 0)], io.EOF
	}
	for n < len(p) {
		k, e := f.readPart(p[n:], off+int64(n))
		if e != nil {
			clear(p[n:]) // nothing unverified leaves
			return n, e
		}
		n += k
	}
	return n, err
}

// readPart reads from an offset as much as lies together.
func (f *imageFile) readPart(p []byte, off int64) (int, error) {
	im, pages := f.im, &f.im.table.Files[f.file]
	page, skip := off/format.PageSize, int(off%format.PageSize)
	i := pages.Find(page)
	r := pages.Runs[i]
	if r.Segment == format.Zero {
		n := int(min(int64(len(p)), pages.End(i)*format.PageSize-off))
		clear(p[:n])
		return n, nil
	}
	k, slot, rest := im.table.Locate(r, page)
	n := min(len(p), int(min(int64(rest), pages.End(i)-page))*format.PageSize-skip)
	s := &im.table.Segments[k]
	if f.bulk {
		im.ahead(k)
	} else if im.hot != nil {
		im.hot.noteRead(k)
	}
	if !im.vault.direct(s.Codec) && !im.recent.has(k) {
		if n, ok := im.packs[s.Pack].ReadPart(p[:n], int(s.First)+slot, skip); ok {
			return n, nil
		}
	}
	raw, err := im.recent.get(k, true, func() ([]byte, error) { return im.fetch(im.ctx, k) })
	if err != nil {
		return 0, err
	}
	return copy(p[:n], raw[slot*format.PageSize+skip:]), nil
}

// read reads segment i as it is stored, into b if there is room.
func (im *Image) read(ctx context.Context, i int, b []byte) ([]byte, error) {
	s := &im.table.Segments[i]
	b = slices.Grow(b[:0], int(s.Size))[:s.Size]
	pack := im.table.Packs[s.Pack]
	if err := im.vault.b.ReadAt(ctx, pack, b, s.Offset); err != nil {
		return nil, im.unreadable(err, "its pack %s", pack)
	}
	return b, nil
}

// prove checks what was read of segment i against its strong hash.
func (im *Image) prove(i int, b []byte) error {
	if im.proven.is(i, b) {
		return nil
	}
	s := &im.table.Segments[i]
	if blake3.Sum256(b) != s.Sum {
		return Damaged(im.manifest.Checkpoint, "the segment at %d of its pack %s does not match its hash", s.Offset, im.table.Packs[s.Pack])
	}
	im.proven.add(i, b)
	return nil
}

func (im *Image) unreadable(err error, what string, args ...any) error {
	return unreadable(im.manifest.Checkpoint, err, what, args...)
}

// unreadable tells damage, bytes that are not there, from a bucket that does
// not answer.
func unreadable(checkpoint string, err error, what string, args ...any) error {
	what = fmt.Sprintf(what, args...)
	if errors.Is(err, bucket.ErrNotExist) {
		return Damaged(checkpoint, "%s is missing", what)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return Damaged(checkpoint, "%s is cut off", what)
	}
	return fmt.Errorf("store: checkpoint %s: reading %s: %w", checkpoint, what, err)
}

var decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(bucket.MaxObject)) // only options can fail

// fetch gives the pages of segment i from the bucket, and puts them in the
// cache. Where only pages that this checkpoint does not have are damaged, it gives
// them as they are: nothing leads to them.
func (im *Image) fetch(ctx context.Context, i int) ([]byte, error) {
	s := &im.table.Segments[i]
	b, err := im.read(ctx, i, nil)
	if err != nil {
		return nil, err
	}
	if err := im.prove(i, b); err != nil && !im.spared(ctx, i, b) {
		return nil, err
	}
	pack := im.table.Packs[s.Pack]
	if b, err = im.vault.open(b, pack, uint64(s.First)); err != nil {
		return nil, fmt.Errorf("store: checkpoint %s: %w", im.manifest.Checkpoint, err)
	}
	want := int(s.Pages) * format.PageSize
	if s.Codec == format.Zstd {
		if b, err = decoder.DecodeAll(b, make([]byte, 0, want)); err != nil {
			return nil, Damaged(im.manifest.Checkpoint, "the segment at %d of its pack %s: %v", s.Offset, pack, err)
		}
	}
	if len(b) != want {
		return nil, Damaged(im.manifest.Checkpoint, "the segment at %d of its pack %s has %d bytes instead of %d", s.Offset, pack, len(b), want)
	}
	if !im.vault.direct(s.Codec) {
		im.packs[s.Pack].Write(b, int(s.First))
	}
	return b, nil
}
