// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// checkRoom refuses n bytes that are more than the limits or the disk allow.
func checkRoom(n int64, dir string, limits Limits) error {
	if limits.Bytes > 0 && n > limits.Bytes {
		return fault.New(fault.Invalid, "the checkpoint has %d MiB, more than the %d MiB allowed", mib(n), limits.Bytes>>20)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("portable: %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; n > free {
		return noRoom(fault.New(fault.Unavailable, "the checkpoint needs %d MiB on the disk of %s, which has %d MiB free", mib(n), dir, free>>20))
	}
	return nil
}

func noRoom(f *fault.Fault) *fault.Fault {
	return f.WithHint("free some space, for instance by deleting checkpoints, and try again")
}

// mib is n in MiB, not less.
func mib(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

// newSpool makes a file without a name in dir.
func newSpool(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".import-*")
	if err != nil {
		return nil, diskError(dir, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(diskError(dir, err), f.Close())
	}
	return f, nil
}

// spool copies size bytes from r to the empty file f, leaves holes where they
// are zero, and tells count about each piece.
func spool(f *os.File, r io.Reader, size int64, count func(int)) error {
	buf := make([]byte, min(size, maxFrame))
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(size-off, int64(len(buf)))]
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		if err := writeSparse(f, buf, off); err != nil {
			return diskError(f.Name(), err)
		}
		count(len(buf))
	}
	if err := f.Truncate(size); err != nil { // its end may be a hole
		return diskError(f.Name(), err)
	}
	return nil
}

var zeroPage [engine.PageSize]byte

// writeSparse writes the runs of pages of b that are not all zero.
func writeSparse(f *os.File, b []byte, off int64) error {
	zero := func(at int) bool {
		page := b[at:min(at+engine.PageSize, len(b))]
		return bytes.Equal(page, zeroPage[:len(page)])
	}
	for at := 0; at < len(b); {
		from := at
		for at < len(b) && !zero(at) {
			at += engine.PageSize
		}
		if to := min(at, len(b)); to > from {
			if _, err := f.WriteAt(b[from:to], off+int64(from)); err != nil {
				return err
			}
		}
		for at < len(b) && zero(at) {
			at += engine.PageSize
		}
	}
	return nil
}

// diskError says so where the disk is full.
func diskError(path string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return noRoom(fault.Wrap(fault.Unavailable, err, "reading a checkpoint file: no space left on the disk of %s", path))
	}
	return fmt.Errorf("portable: %w", err)
}
