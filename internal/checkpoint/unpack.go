// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/store"
)

// openToRestore is open, with a source that the build which is to restore it can
// read: where that does not know the store it is a copy in the first format, which
// release removes. The engine has opened it by then, and needs its name no more.
func (s *Service) openToRestore(ctx context.Context, c meta.Checkpoint, progress func(done, total int64)) (img store.Checkpoint, src sandbox.Source, release func(), err error) {
	img, src, release, err = s.open(ctx, c, progress)
	if err != nil || artefactOf(c).object == "" {
		return img, src, release, err
	}
	dir := ""
	ok, err := s.cfg.Engine.ReadsStore(ctx, src.Artefact.Build, src.Artefact.Engine)
	if err == nil && !ok {
		if dir, err = s.unpack(ctx, img); err == nil {
			src.Artefact.Location = filepath.Join(dir, img.Manifest().Checkpoint)
		}
	}
	if err != nil {
		release()
		return nil, src, nil, s.noteDamage(ctx, c, err)
	}
	if dir == "" {
		return img, src, release, nil
	}
	closed := release
	return img, src, func() {
		if err := os.RemoveAll(dir); err != nil {
			s.cfg.Log.Error("removing what was unpacked for an earlier build", "checkpoint", c.ID, "error", err)
		}
		closed()
	}, nil
}

// unpack writes a checkpoint in the first format to a directory of its id in the
// one that it gives.
func (s *Service) unpack(ctx context.Context, img store.Checkpoint) (dir string, err error) {
	m := img.Manifest()
	free, err := s.cfg.DataFree()
	if err != nil {
		return "", err
	}
	if need := m.SizeBytes + spaceMargin; free < need {
		return "", fault.New(fault.Unavailable, "no space to unpack checkpoint %s, which an earlier build restores: %d MB are needed, %d MB are free on the data disk",
			m.Checkpoint, need>>20, free>>20).WithHint("free some space and try again")
	}
	if dir, err = os.MkdirTemp(s.cfg.Spool, "unpacked-"); err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	if err := store.Unpack(ctx, img, filepath.Join(dir, m.Checkpoint)); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	s.cfg.Log.Info("checkpoint unpacked for an earlier build", "checkpoint", m.Checkpoint, "build", m.Build, "bytes", m.SizeBytes)
	return dir, nil
}
