// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// Dir is a store in a directory.
type Dir struct {
	root string
	disk durable.Disk
}

// stagingDir holds what is being written or removed; its contents are never
// part of the store.
const stagingDir = ".staging"

// copyChunk is how much is hashed and written at a time.
const copyChunk = 1 << 20

// OpenDir opens or makes the store and removes what a crash left half done.
// There must be only one Dir per directory at a time.
func OpenDir(root string) (*Dir, error) { return openDir(root, durable.Disk{}) }

func openDir(root string, disk durable.Disk) (*Dir, error) {
	d := &Dir{root: root, disk: disk}
	if err := os.RemoveAll(d.staging("")); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := disk.MkdirAll(d.staging(""), 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return d, nil
}

// Path is the directory of a checkpoint, for OpenImage in another process.
func (d *Dir) Path(id string) string { return filepath.Join(d.root, id) }

func (d *Dir) staging(name string) string { return filepath.Join(d.root, stagingDir, name) }

// Free is the number of bytes that the disk under the store has left.
func (d *Dir) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.root, &st); err != nil {
		return 0, fmt.Errorf("store: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Put stores a capture as checkpoint m.Checkpoint, which must be new, and
// returns its complete manifest; m need not have Format, Version, BlockSize,
// Files, Sums, Ranges. When it returns without error the checkpoint is
// durable. After an error nothing of it remains; where the disk is full that is
// an Unavailable fault. progress, if not nil, is told bytes written so far and
// in all.
func (d *Dir) Put(ctx context.Context, m Manifest, c *engine.Capture, progress func(done, total int64)) (_ *Manifest, err error) {
	if !validID(m.Checkpoint) {
		return nil, fmt.Errorf("store: %q is not a checkpoint id", m.Checkpoint)
	}
	tmp, final := d.staging(m.Checkpoint), d.Path(m.Checkpoint)
	if _, err := os.Lstat(final); err == nil {
		return nil, fault.New(fault.Conflict, "checkpoint %s is in the store already", m.Checkpoint)
	}
	defer func() {
		if err != nil {
			err = errors.Join(noSpace(err, m.Checkpoint), os.RemoveAll(tmp), os.RemoveAll(final))
		}
	}()
	if err := d.disk.MkdirAll(tmp, 0o700); err != nil {
		return nil, err
	}
	if err := d.write(ctx, tmp, &m, c, progress); err != nil {
		return nil, err
	}
	raw, err := encodeManifest(&m)
	if err != nil {
		return nil, err
	}
	// Everything else is on disk before the manifest exists.
	if err := d.disk.SyncDir(tmp); err != nil {
		return nil, err
	}
	if err := d.disk.WriteFile(filepath.Join(tmp, fileManifest), raw, 0o600); err != nil {
		return nil, err
	}
	if err := d.disk.Rename(tmp, final); err != nil {
		return nil, err
	}
	return &m, nil
}

// write writes the capture's files and tables to dir and completes the
// manifest.
func (d *Dir) write(ctx context.Context, dir string, m *Manifest, c *engine.Capture, progress func(done, total int64)) error {
	m.Format, m.Version, m.BlockSize = FormatName, FormatVersion, blockSize
	m.Files = []FileInfo{{FileState, c.StateSize}, {FileMeta, c.MetaSize}, {FilePages, c.PagesSize}}
	sources := []io.ReaderAt{c.State, c.Meta, c.Pages}
	w := &writer{total: m.LogicalSize(), progress: progress}
	sums := make([][]blockSum, len(sources))
	for i, f := range m.Files {
		err := d.disk.Create(filepath.Join(dir, f.Name), 0o600, func(dst *os.File) (err error) {
			sums[i], err = w.copy(ctx, dst, sources[i], f.Size)
			return err
		})
		if err != nil {
			return err
		}
	}
	var err error
	if m.Sums, err = d.putTable(dir, fileSums, encodeSums(sums)); err != nil {
		return err
	}
	m.Ranges, err = d.putTable(dir, fileRanges, EncodeRanges(c.Ranges))
	return err
}

// Open opens a checkpoint: see OpenImage.
func (d *Dir) Open(id string) (*Image, error) {
	if !validID(id) {
		return nil, fault.New(fault.NotFound, "checkpoint %s has no data in the store", id)
	}
	return OpenImage(d.Path(id))
}

// Delete removes a checkpoint and gives its space back, at once or when the
// last process that reads it ends. A missing one is nil.
func (d *Dir) Delete(id string) error {
	if !validID(id) {
		return fmt.Errorf("store: %q is not a checkpoint id", id)
	}
	grave := d.staging("deleted-" + id)
	err := os.RemoveAll(grave) // of an earlier deletion that was not carried through
	if err == nil {
		err = d.disk.Rename(d.Path(id), grave)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(err, os.RemoveAll(grave)); err != nil {
		return fmt.Errorf("store: deleting checkpoint %s: %w", id, err)
	}
	return nil
}

// List names the checkpoints that the store holds, damaged ones too, in order.
func (d *Dir) List() ([]string, error) {
	es, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var ids []string
	for _, e := range es {
		if e.IsDir() && validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// validID keeps ids from being paths.
func validID(id string) bool {
	return id != "" && !strings.ContainsAny(id, "/\x00") && id[0] != '.'
}

// writer copies files and reports progress over all of them.
type writer struct {
	total    int64
	progress func(done, total int64)

	mu   sync.Mutex // guards done and calls of progress
	done int64
}

// copy writes a source of the size to f and gives the hashes of its blocks. It
// hashes and writes on all CPUs, and has the kernel write back meanwhile, so
// that little is left for the sync at the end.
func (w *writer) copy(ctx context.Context, f *os.File, src io.ReaderAt, size int64) ([]blockSum, error) {
	if size > 0 { // say "no space" now rather than at the last block
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, err
		}
	}
	sums := make([]blockSum, blocks(size))
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for off := int64(0); off < size && ctx.Err() == nil; off += copyChunk {
		g.Go(func() error {
			n := min(copyChunk, size-off)
			if err := copyBlocks(f, src, off, n, sums[off/blockSize:]); err != nil {
				return err
			}
			w.report(n)
			return ctx.Err()
		})
	}
	return sums, errors.Join(g.Wait(), parent.Err())
}

// copyBlocks copies n bytes from an offset that begins a block, and sets the
// hashes of their blocks.
func copyBlocks(f *os.File, src io.ReaderAt, off, n int64, sums []blockSum) error {
	b := make([]byte, n)
	if k, err := src.ReadAt(b, off); int64(k) < n {
		return fmt.Errorf("reading the capture at %d: %w", off, err)
	}
	for i, rest := 0, b; len(rest) > 0; i++ {
		k := min(blockSize, len(rest))
		sums[i] = sumBlock(rest[:k])
		rest = rest[k:]
	}
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE) // a hint
	return nil
}

func (w *writer) report(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done += n; w.progress != nil {
		w.progress(w.done, w.total)
	}
}

func (d *Dir) putTable(dir, name string, b []byte) (Table, error) {
	sum := blake3.Sum256(b)
	return Table{Size: int64(len(b)), Blake3: hex.EncodeToString(sum[:])},
		d.disk.Create(filepath.Join(dir, name), 0o600, func(f *os.File) error {
			_, err := f.Write(b)
			return err
		})
}

// noSpace turns a full disk into a fault that says so.
func noSpace(err error, id string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Wrap(fault.Unavailable, err, "writing checkpoint %s: no space left on the disk of the data directory", id).
			WithHint("free some space, for instance by deleting checkpoints, and try again")
	}
	return fmt.Errorf("store: writing checkpoint %s: %w", id, err)
}
