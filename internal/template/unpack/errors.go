// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

const (
	typeMask = unix.S_IFMT
	typeDir  = unix.S_IFDIR
)

// notDir tells whether a name leads through, or is, something that is no
// directory.
func notDir(err error) bool { return errors.Is(err, unix.ENOTDIR) }

// archiveCaused tells errors that come from names and links which contradict
// each other from those of the machine.
func archiveCaused(err error) bool {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
		return true
	}
	return slices.ContainsFunc([]error{
		unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL,
		unix.EMLINK, unix.EBUSY, unix.EPERM, unix.EFBIG, unix.EXDEV,
	}, func(e error) bool { return errors.Is(err, e) })
}

// readError makes a failure to read the archive a fault of it, except where it
// is the machine's or the caller's.
func readError(err error, message string) error {
	var path *fs.PathError
	var f *fault.Fault
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &path) || errors.As(err, &f) {
		return err
	}
	return fault.Wrap(fault.Invalid, err, "%s", message)
}

// source is an archive that ends with its context.
type source struct {
	ctx context.Context
	r   io.Reader
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

// contentReader marks failures of reading, to tell them from those of writing.
type contentReader struct{ r io.Reader }

func (c *contentReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = readError(err, "the archive is damaged or cut short")
	}
	return n, err
}
