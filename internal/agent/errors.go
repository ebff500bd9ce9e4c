// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// failf makes an error that the caller of the operation gets to see.
func failf(kind, format string, args ...any) *wire.Error {
	return &wire.Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// cause is what was wrong with a file without the name that it has for a moment,
// which nobody has asked for.
func cause(err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &le):
		return le.Err
	}
	return err
}

// report turns any error into what a Reply carries.
func report(err error) *wire.Error {
	var we *wire.Error
	switch {
	case errors.As(err, &we):
		return we
	case errors.Is(err, fs.ErrNotExist):
		return failf(wire.NotFound, "%v", err)
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTEMPTY):
		return failf(wire.Conflict, "%v", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e := failf(wire.Exhausted, "the sandbox's disk is full: %v", err)
		e.Hint = "remove files in the sandbox, or create it with a larger disk"
		return e
	case errors.Is(err, context.Canceled):
		return failf(wire.Unavailable, "the call was given up")
	}
	for _, n := range []error{
		syscall.ENOTDIR, syscall.EISDIR, syscall.EINVAL, syscall.ELOOP, syscall.ENAMETOOLONG,
		syscall.EROFS, syscall.EBUSY, syscall.EXDEV, fs.ErrPermission, fs.ErrInvalid, wire.ErrMalformed,
	} {
		if errors.Is(err, n) {
			return failf(wire.Invalid, "%v", err)
		}
	}
	return failf(wire.Internal, "%v", err)
}
