// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// copyChunk is how much is hashed and written at a time.
const copyChunk = 1 << 20

// Write writes a whole capture as checkpoint m.Checkpoint, by which dir, which
// is new, must be named; m need not have Format, Version, BlockSize, Files, Sums,
// Ranges. Nothing is flushed to disk: it is for who reads it now. After an error
// nothing of it remains; where the disk is full that is an Unavailable fault.
func Write(ctx context.Context, dir string, m Manifest, c *engine.Capture) (err error) {
	if id := filepath.Base(dir); !validID(id) || id != m.Checkpoint {
		return fmt.Errorf("store: %q is not a directory for checkpoint %q", dir, m.Checkpoint)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(noSpace(err, m.Checkpoint), os.RemoveAll(dir))
		}
	}()
	m.Format, m.Version, m.BlockSize = FormatName, FormatVersion, blockSize
	m.Files = []FileInfo{{FileState, c.StateSize}, {FileMeta, c.MetaSize}, {FilePages, c.PagesSize}}
	sums := make([][]blockSum, len(m.Files))
	for i, src := range []io.ReaderAt{c.State, c.Meta, c.Pages} {
		if sums[i], err = writeFile(ctx, filepath.Join(dir, m.Files[i].Name), src, m.Files[i].Size); err != nil {
			return err
		}
	}
	if m.Sums, err = writeTable(filepath.Join(dir, fileSums), encodeSums(sums)); err != nil {
		return err
	}
	if m.Ranges, err = writeTable(filepath.Join(dir, fileRanges), encodeRanges(c.Ranges)); err != nil {
		return err
	}
	raw, err := encodeManifest(&m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fileManifest), raw, 0o600)
}

// writeFile writes a source of the size to a new file, on all CPUs, and gives the
// hashes of its blocks.
func writeFile(ctx context.Context, path string, src io.ReaderAt, size int64) (_ []blockSum, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sums := make([]blockSum, blocks(size))
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for off := int64(0); off < size && ctx.Err() == nil; off += copyChunk {
		g.Go(func() error {
			return errors.Join(copyBlocks(f, src, off, min(copyChunk, size-off), sums[off/blockSize:]), ctx.Err())
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
	_, err := f.WriteAt(b, off)
	return err
}

func writeTable(path string, b []byte) (Table, error) {
	sum := blake3.Sum256(b)
	return Table{Size: int64(len(b)), Blake3: hex.EncodeToString(sum[:])}, os.WriteFile(path, b, 0o600)
}

// noSpace turns a full disk into a fault that says so.
func noSpace(err error, id string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Wrap(fault.Unavailable, err, "unpacking checkpoint %s: no space left on the disk of the data directory", id).
			WithHint("free some space and try again; checkpoints of earlier builds are unpacked while they are restored")
	}
	return fmt.Errorf("store: unpacking checkpoint %s: %w", id, err)
}
