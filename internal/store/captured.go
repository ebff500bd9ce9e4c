// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/pageset"
)

// capturedFiles is how many descriptors a Captured is.
const capturedFiles = 4 // state, meta, pages, table

// captured is what a location says of a capture that is not stored yet: the sizes
// of its files, which come as descriptors.
type captured struct {
	State int64 `json:"state"`
	Meta  int64 `json:"meta"`
	Pages int64 `json:"pages"` // of the whole pages file
	Table int64 `json:"table"` // the page identities, and which pages the capture holds (package pageset)
}

// Captured names a capture for Reach, in another process, before it is stored:
// by a location and the descriptors of its memory, of which the last is the
// caller's to close. ok is false for a capture that is in no files.
func (s *Store) Captured(c *engine.Capture, base *Image, name string) (where string, files []*os.File, ok bool, err error) {
	for _, r := range []io.ReaderAt{c.State, c.Meta, c.Pages} {
		f, isFile := r.(*os.File)
		if !isFile {
			return "", nil, false, nil
		}
		files = append(files, f)
	}
	fd, err := unix.MemfdCreate("oc-capture-table", unix.MFD_CLOEXEC)
	if err != nil {
		return "", nil, false, fmt.Errorf("store: %w", err)
	}
	table := os.NewFile(uintptr(fd), "table")
	b := pageset.EncodeTable(c.Ranges, c.Copied)
	if _, err := table.Write(b); err != nil {
		return "", nil, false, errors.Join(fmt.Errorf("store: %w", err), table.Close())
	}
	l := location{Store: s.cfg, Name: name, Captured: &captured{State: c.StateSize, Meta: c.MetaSize, Pages: c.PagesSize, Table: int64(len(b))}}
	if base != nil {
		l.Object = base.id
	}
	raw, _ := json.Marshal(l) // a struct of strings and numbers
	return string(raw), append(files, table), true, nil
}

// heldCapture is a capture that another process made, as a Checkpoint. Its base is
// opened beside the use of what the capture itself holds, which is needed first.
type heldCapture struct {
	manifest *Manifest
	capture  *engine.Capture
	files    []*os.File
	base     func() (*Image, error) // waits until it is opened; nil: there is none
	pages    io.ReaderAt
}

// basedPages are the pages of a capture on a base.
type basedPages struct {
	overlay func() (io.ReaderAt, error) // waits for the base
}

// ReadAt implements io.ReaderAt.
func (b basedPages) ReadAt(p []byte, off int64) (int, error) {
	o, err := b.overlay()
	if err != nil {
		return 0, err
	}
	return o.ReadAt(p, off)
}

func reachCaptured(ctx context.Context, l location, files []*os.File) (_ *heldCapture, err error) {
	if len(files) != capturedFiles || l.Captured.Table < 0 || l.Captured.Table > 1<<30 {
		return nil, fmt.Errorf("store: a capture of %d files", len(files))
	}
	h := &heldCapture{files: files, manifest: &Manifest{Checkpoint: l.Name, SizeBytes: l.Captured.State + l.Captured.Meta + l.Captured.Pages}}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	table := make([]byte, l.Captured.Table)
	if _, err := files[3].ReadAt(table, 0); err != nil {
		return nil, fmt.Errorf("store: reading the table of a capture: %w", err)
	}
	c := &engine.Capture{
		State: files[0], StateSize: l.Captured.State, Meta: files[1], MetaSize: l.Captured.Meta, Pages: files[2], PagesSize: l.Captured.Pages,
	}
	if c.Ranges, c.Copied, err = pageset.DecodeTable(table, c.PagesSize); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	h.capture, h.pages = c, c.Pages
	if c.Copied == nil {
		return h, nil
	}
	h.base = sync.OnceValues(func() (*Image, error) { return reach(ctx, l) })
	go func() { _, _ = h.base() }() // whoever reads hears why it failed
	h.pages = basedPages{sync.OnceValues(func() (io.ReaderAt, error) {
		base, err := h.base()
		if err != nil {
			return nil, err
		}
		return Overlay(c, base), nil
	})}
	return h, nil
}

// Manifest implements Checkpoint; only names and sizes are known.
func (h *heldCapture) Manifest() *Manifest { return h.manifest }

// Ranges implements Checkpoint.
func (h *heldCapture) Ranges() []engine.PageRange { return h.capture.Ranges }

// Verify implements Checkpoint: memory is not verified, its base when it is read.
func (h *heldCapture) Verify(context.Context, func(done, total int64)) error { return nil }

// Usable implements Checkpoint, as Verify.
func (h *heldCapture) Usable(context.Context) error { return nil }

// File implements Checkpoint.
func (h *heldCapture) File(name string) File {
	switch name {
	case FileState:
		return io.NewSectionReader(h.capture.State, 0, h.capture.StateSize)
	case FileMeta:
		return io.NewSectionReader(h.capture.Meta, 0, h.capture.MetaSize)
	}
	return io.NewSectionReader(h.pages, 0, h.capture.PagesSize)
}

// Close implements Checkpoint.
func (h *heldCapture) Close() {
	for _, f := range h.files {
		_ = f.Close() // only read
	}
	if h.base == nil {
		return
	}
	if base, err := h.base(); err == nil {
		base.Close()
	}
}
