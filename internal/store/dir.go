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
	"slices"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// Dir is a store in a directory.
type Dir struct {
	root string
}

// stagingDir holds what is being written or removed; its contents are never
// part of the store.
const stagingDir = ".staging"

// copyChunk is how much is hashed and written at a time.
const copyChunk = 1 << 20

// OpenDir opens or makes the store and removes what a crash left half done.
// There must be only one Dir per directory at a time.
func OpenDir(root string) (*Dir, error) {
	d := &Dir{root: root}
	if err := os.RemoveAll(filepath.Join(root, stagingDir)); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(root, stagingDir), 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return d, durable.SyncDir(root)
}

// Path is the directory of a checkpoint, for OpenImage in another process.
func (d *Dir) Path(id string) string { return filepath.Join(d.root, id) }

// Free is the number of bytes that the disk under the store has left.
func (d *Dir) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.root, &st); err != nil {
		return 0, fmt.Errorf("store: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Put stores a capture as checkpoint m.Checkpoint and returns its complete
// manifest; m need not have Format, Version, Files, Sums, Ranges. When it
// returns without error the checkpoint is durable. After an error nothing of
// it remains. progress, if not nil, is told bytes written so far and in all.
func (d *Dir) Put(ctx context.Context, m Manifest, c *engine.Capture, progress func(done, total int64)) (_ *Manifest, err error) {
	tmp, err := os.MkdirTemp(filepath.Join(d.root, stagingDir), m.Checkpoint+"-")
	if err != nil {
		return nil, noSpace(err, "making room for checkpoint %s", m.Checkpoint)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	m.Format, m.Version, m.BlockSize = FormatName, FormatVersion, blockSize
	m.Files = []FileInfo{{FileState, c.StateSize}, {FileMeta, c.MetaSize}, {FilePages, c.PagesSize}}
	sources := []io.ReaderAt{c.State, c.Meta, c.Pages}
	w := &writer{total: m.LogicalSize(), progress: progress}
	sums := make([][]blockSum, len(sources))
	for i, f := range m.Files {
		if sums[i], err = w.copy(ctx, filepath.Join(tmp, f.Name), sources[i], f.Size); err != nil {
			return nil, noSpace(err, "writing checkpoint %s", m.Checkpoint)
		}
	}
	if m.Sums, err = putTable(tmp, fileSums, encodeSums(sums)); err != nil {
		return nil, noSpace(err, "writing checkpoint %s", m.Checkpoint)
	}
	if m.Ranges, err = putTable(tmp, fileRanges, EncodeRanges(c.Ranges)); err != nil {
		return nil, noSpace(err, "writing checkpoint %s", m.Checkpoint)
	}
	raw, err := encodeManifest(&m)
	if err != nil {
		return nil, err
	}
	// Everything else is on disk before the manifest exists.
	if err := durable.SyncTree(tmp); err != nil {
		return nil, noSpace(err, "writing checkpoint %s", m.Checkpoint)
	}
	if err := durable.WriteFile(filepath.Join(tmp, fileManifest), raw, 0o600); err != nil {
		return nil, noSpace(err, "writing checkpoint %s", m.Checkpoint)
	}
	if err := durable.Rename(tmp, d.Path(m.Checkpoint)); err != nil {
		return nil, fmt.Errorf("store: publishing checkpoint %s: %w", m.Checkpoint, err)
	}
	return &m, nil
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
	grave, err := os.MkdirTemp(filepath.Join(d.root, stagingDir), "deleted-")
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	err = durable.Rename(d.Path(id), filepath.Join(grave, id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(grave))
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
	done, total int64
	progress    func(done, total int64)
}

func (w *writer) copy(ctx context.Context, path string, src io.ReaderAt, size int64) (_ []blockSum, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size > 0 { // say "no space" now rather than at the last block
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, err
		}
	}
	sums := make([]blockSum, 0, blocks(size))
	buf := make([]byte, copyChunk)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := buf[:min(copyChunk, size-off)]
		if n, err := src.ReadAt(b, off); n < len(b) {
			return nil, fmt.Errorf("reading the capture at %d: %w", off, err)
		}
		for rest := b; len(rest) > 0; {
			k := min(blockSize, len(rest))
			sums = append(sums, sumBlock(rest[:k]))
			rest = rest[k:]
		}
		if _, err := f.Write(b); err != nil {
			return nil, err
		}
		off += int64(len(b))
		if w.done += int64(len(b)); w.progress != nil {
			w.progress(w.done, w.total)
		}
	}
	return sums, nil
}

func putTable(dir, name string, b []byte) (Table, error) {
	sum := blake3.Sum256(b)
	return Table{Size: int64(len(b)), Blake3: hex.EncodeToString(sum[:])},
		durable.WriteFile(filepath.Join(dir, name), b, 0o600)
}

// noSpace turns a full disk into a fault that says so.
func noSpace(err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Wrap(fault.Unavailable, err, "%s: no space left on the disk of the data directory", what).
			WithHint("free some space, for instance by deleting checkpoints, and try again")
	}
	return fmt.Errorf("store: %s: %w", what, err)
}
