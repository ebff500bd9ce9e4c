// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// The capture's files, and the store's own beside them.
const (
	FileState    = "state" // the engine's object graph
	FileMeta     = "meta"  // the engine's page map
	FilePages    = "pages" // page contents
	fileSums     = "sums"
	fileRanges   = "ranges"
	fileManifest = "manifest"
)

// Image is an opened checkpoint. Its open files keep the data alive when the
// checkpoint is deleted meanwhile. It is safe for concurrent use.
type Image struct {
	manifest *Manifest
	ranges   []engine.PageRange
	files    map[string]*File
}

// OpenImage opens the checkpoint in a directory of the store (Dir.Path) and
// verifies its manifest and tables, not yet its contents. It fails with a
// Damaged fault, or NotFound.
func OpenImage(dir string) (_ *Image, err error) {
	id := filepath.Base(dir)
	raw, err := readBounded(filepath.Join(dir, fileManifest), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		if _, e := os.Stat(dir); e == nil {
			return nil, Damaged(id, "its manifest is missing")
		}
		return nil, fault.New(fault.NotFound, "checkpoint %s has no data in the store", id)
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	m, err := decodeManifest(id, raw)
	if err != nil {
		return nil, err
	}
	im := &Image{manifest: m, files: map[string]*File{}}
	defer func() {
		if err != nil {
			im.Close()
		}
	}()
	sumsRaw, err := readTable(dir, id, fileSums, m.Sums)
	if err != nil {
		return nil, err
	}
	sizes := make([]int64, len(m.Files))
	for i, f := range m.Files {
		sizes[i] = f.Size
	}
	sums, err := decodeSums(sumsRaw, sizes)
	if err != nil {
		return nil, Damaged(id, "%v", err)
	}
	for i, f := range m.Files {
		if im.files[f.Name], err = openFile(dir, id, f, sums[i]); err != nil {
			return nil, err
		}
	}
	rangesRaw, err := readTable(dir, id, fileRanges, m.Ranges)
	if err != nil {
		return nil, err
	}
	if im.ranges, err = decodeRanges(rangesRaw, im.files[FilePages].Size()); err != nil {
		return nil, Damaged(id, "%v", err)
	}
	return im, nil
}

// Manifest of the checkpoint; not to be changed.
func (im *Image) Manifest() *Manifest { return im.manifest }

// Ranges are the identities of the pages file's pages, in order; not to be
// changed.
func (im *Image) Ranges() []engine.PageRange { return im.ranges }

// File gives one of the capture's files: FileState, FileMeta or FilePages.
func (im *Image) File(name string) *File { return im.files[name] }

// Verify reads and checks everything, on all CPUs.
func (im *Image) Verify(ctx context.Context) error {
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, f := range im.manifest.Files {
		for off := int64(0); off < f.Size; off += copyChunk {
			if ctx.Err() != nil {
				break
			}
			g.Go(func() error { return im.files[f.Name].verify(ctx, off, min(copyChunk, f.Size-off)) })
		}
	}
	return errors.Join(g.Wait(), parent.Err())
}

// Close releases the files.
func (im *Image) Close() {
	for _, f := range im.files {
		if f != nil {
			_ = f.f.Close() // read only
		}
	}
}

// File reads one file of an image, verified.
type File struct {
	id, name string
	f        *os.File
	size     int64
	sums     []blockSum
	seen     []atomic.Bool // blocks whose strong hash was checked
	buffers  sync.Pool
}

func openFile(dir, id string, info FileInfo, sums []blockSum) (*File, error) {
	f, err := os.Open(filepath.Join(dir, info.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Damaged(id, "its file %q is missing", info.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() != info.Size {
		err = Damaged(id, "its file %q has %d bytes instead of %d", info.Name, st.Size(), info.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{id: id, name: info.Name, f: f, size: info.Size, sums: sums, seen: make([]atomic.Bool, len(sums)),
		buffers: sync.Pool{New: func() any { b := make([]byte, blockSize); return &b }}}, nil
}

// verify checks a range that begins with a block.
func (f *File) verify(ctx context.Context, off, n int64) error {
	buf := f.buffers.Get().(*[]byte)
	defer f.buffers.Put(buf)
	for end := off + n; off < end; off += blockSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.readBlock(off/blockSize, *buf); err != nil {
			return err
		}
	}
	return nil
}

// Size in bytes.
func (f *File) Size() int64 { return f.size }

// readBlock reads block i into buf (of blockSize) and verifies it.
func (f *File) readBlock(i int64, buf []byte) ([]byte, error) {
	n := min(blockSize, f.size-i*blockSize)
	b := buf[:n]
	if _, err := f.f.ReadAt(b, i*blockSize); err != nil {
		return nil, Damaged(f.id, "block %d of %q cannot be read: %v", i, f.name, err)
	}
	if err := f.check(i, b); err != nil {
		return nil, err
	}
	return b, nil
}

func (f *File) check(i int64, b []byte) error {
	if f.seen[i].Load() {
		if crc32.Checksum(b, castagnoli) != f.sums[i].cheap {
			return Damaged(f.id, "block %d of %q changed since it was verified", i, f.name)
		}
		return nil
	}
	if sumBlock(b) != f.sums[i] {
		return Damaged(f.id, "block %d of %q does not match its hash", i, f.name)
	}
	f.seen[i].Store(true)
	return nil
}

// ReadAt implements io.ReaderAt; what it returns is verified. Reads of whole
// blocks go straight into p.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("store: negative offset %d", off)
	}
	for n < len(p) {
		if off >= f.size {
			return n, io.EOF
		}
		i, skip := off/blockSize, off%blockSize
		want := min(blockSize, f.size-i*blockSize)
		var k int
		if skip == 0 && int64(len(p)-n) >= want {
			b, err := f.readBlock(i, p[n:n+int(want)])
			if err != nil {
				clear(p[n : n+int(want)]) // nothing unverified leaves
				return n, err
			}
			k = len(b)
		} else {
			buf := f.buffers.Get().(*[]byte)
			b, err := f.readBlock(i, *buf)
			if err == nil {
				k = copy(p[n:], b[skip:])
			}
			f.buffers.Put(buf)
			if err != nil {
				return n, err
			}
		}
		n += k
		off += int64(k)
	}
	return n, nil
}

// readTable reads a file verified by one hash.
func readTable(dir, id, name string, t Table) ([]byte, error) {
	b, err := readBounded(filepath.Join(dir, name), t.Size)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Damaged(id, "its file %q is missing", name)
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	sum := blake3.Sum256(b)
	if int64(len(b)) != t.Size || hex.EncodeToString(sum[:]) != t.Blake3 {
		return nil, Damaged(id, "its file %q does not match its hash", name)
	}
	return b, nil
}

// readBounded reads a file of at most limit bytes, and one byte more of a
// longer one, which no hash will match.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
