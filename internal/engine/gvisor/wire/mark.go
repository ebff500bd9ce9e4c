// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
)

// markName is how a mark is called among a process' descriptors.
const markName = "oc-capture-mark"

// maxMark bounds a mark, in bytes.
const maxMark = 64 << 10

// NewMark makes a capture's mark: memory that its helper, the watchdog beside it and
// the server share. Its first byte is MarkPaused's; behind that is the record of the
// engine, for a server that finds the mark with somebody whom another one started.
func NewMark(p engine.Process) (*os.File, error) {
	fd, err := unix.MemfdCreate(markName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("engine: the mark of a capture: %w", err)
	}
	f := os.NewFile(uintptr(fd), markName)
	if _, err := f.WriteAt(append([]byte{0}, p.Encode()...), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: the mark of a capture: %w", err), f.Close())
	}
	return f, nil
}

// FindMark opens the mark that a process has at a descriptor; nil where it has none
// there.
func FindMark(pid, fd int) *os.File {
	path := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	if to, err := os.Readlink(path); err != nil || !strings.Contains(to, markName) {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil // it has ended
	}
	return f
}

// Marked gives the record of the engine that a mark is about.
func Marked(f *os.File) (engine.Process, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 1, maxMark))
	if err != nil {
		return engine.Process{}, fmt.Errorf("engine: the mark of a capture: %w", err)
	}
	return engine.DecodeProcess(b)
}

// MarkPaused notes that an engine is paused, after it was, or that it is to go
// on, before it does: who reads that it is paused may resume it. A helper killed
// between the two deeds leaves the engine paused and not marked so.
func MarkPaused(f *os.File, paused bool) error {
	b := []byte{0}
	if paused {
		b[0] = 1
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("helper: noting that the engine is paused: %w", err)
	}
	return nil
}

// IsPaused reads what MarkPaused noted.
func IsPaused(f *os.File) (bool, error) {
	var b [1]byte
	if _, err := f.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("helper: reading whether the engine is paused: %w", err)
	}
	return b[0] == 1, nil
}
