// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"

	"github.com/opencomputer/oc/internal/engine"
	v1 "github.com/opencomputer/oc/internal/store/v1"
)

// Checkpoint is an opened checkpoint of any format. It is safe for concurrent
// use.
type Checkpoint interface {
	// Manifest describes it; not to be changed.
	Manifest() *Manifest
	// Ranges are the identities of the pages file's pages, in order; not to be
	// changed.
	Ranges() []engine.PageRange
	// File gives one of the capture's files: FileState, FileMeta or FilePages.
	File(name string) File
	// Verify reads and checks everything that is stored; progress, if not nil, is told
	// the bytes that are checked, and all. It is ErrNotNeeded where all can be used.
	Verify(ctx context.Context, progress func(done, total int64)) error
	// Usable finds what reads of the checkpoint would come upon, before anything
	// depends on them. It may be much faster than Verify, and pass over damage that
	// no read sees.
	Usable(ctx context.Context) error
	// Close ends the reading.
	Close()
}

// legacy is a checkpoint of the first format.
type legacy struct {
	*v1.Image
	manifest *Manifest
}

// OpenLegacy opens a checkpoint of the first format by its directory.
func OpenLegacy(dir string) (Checkpoint, error) {
	im, err := v1.OpenImage(dir)
	if err != nil {
		return nil, err
	}
	m := im.Manifest()
	return &legacy{im, &Manifest{
		Format: m.Format, Version: m.Version, Checkpoint: m.Checkpoint, Sandbox: m.Sandbox, Parent: m.Parent,
		CreatedAt: m.CreatedAt, Requirements: m.Requirements, Build: m.Build, ImageHash: m.ImageHash, TreeHash: m.TreeHash,
		Agent: m.Agent, Shape: m.Shape, SizeBytes: m.LogicalSize(), AddedBytes: m.StoredSize(),
	}}, nil
}

func (l *legacy) Manifest() *Manifest { return l.manifest }

func (l *legacy) File(name string) File { return l.Image.File(name) }

func (l *legacy) Verify(ctx context.Context, progress func(done, total int64)) error {
	if err := l.Image.Verify(ctx); err != nil {
		return err
	}
	if n := l.manifest.SizeBytes; progress != nil {
		progress(n, n)
	}
	return nil
}

func (l *legacy) Usable(ctx context.Context) error { return l.Image.Verify(ctx) }

// Unpack writes a checkpoint in the first format to a directory, which is new and
// named by the checkpoint's id, for a build that knows no other. Every byte is
// verified on the way. It is not durable. After an error nothing of it remains.
func Unpack(ctx context.Context, img Checkpoint, dir string) error {
	m := img.Manifest()
	return v1.Write(ctx, dir, v1.Manifest{
		Checkpoint: m.Checkpoint, Sandbox: m.Sandbox, Parent: m.Parent, CreatedAt: m.CreatedAt, Requirements: m.Requirements,
		Build: m.Build, ImageHash: m.ImageHash, TreeHash: m.TreeHash, Agent: m.Agent, Shape: m.Shape,
	}, CaptureOf(img))
}

// CaptureOf is an opened checkpoint as if it had just been captured. Closing it
// does nothing.
func CaptureOf(img Checkpoint) *engine.Capture {
	state, meta, pages := img.File(FileState), img.File(FileMeta), img.File(FilePages)
	return &engine.Capture{
		State: state, StateSize: state.Size(), Meta: meta, MetaSize: meta.Size(), Pages: pages, PagesSize: pages.Size(),
		Ranges: img.Ranges(), Close: func() {},
	}
}
