// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/store"
	"github.com/opencomputer/oc/internal/store/portable"
)

// parcel is the manifest of an exported checkpoint: what the store has of it, and
// what only its row has.
type parcel struct {
	Checkpoint store.Manifest    `json:"checkpoint"`
	Kind       string            `json:"kind"`
	Template   string            `json:"template"`
	Envs       map[string]string `json:"envs,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"` // of its sandbox
	CPUs       int               `json:"cpus"`
	MemoryMB   int               `json:"memoryMB"`
	DiskMB     int               `json:"diskMB"`
}

// Export writes a checkpoint as one self-contained file (package portable).
func (s *Service) Export(ctx context.Context, orgID, id string, w io.Writer, progress func(done, total int64)) error {
	c, err := s.ready(ctx, orgID, id)
	if err != nil {
		return err
	}
	img, src, release, err := s.open(ctx, c, nil)
	if err != nil {
		return err
	}
	defer release()
	sb, err := s.cfg.Meta.SandboxAnyOrg(ctx, c.SandboxID)
	if err != nil {
		return err
	}
	m := *img.Manifest()
	m.Name = c.Name
	m.Table, m.Hashes, m.Engine, m.Image, m.Hot = store.Object{}, store.Object{}, nil, nil, "" // of our store
	manifest, err := json.Marshal(parcel{
		Checkpoint: m, Kind: c.Kind, Template: c.Template, Envs: c.Envs, Metadata: sb.Metadata, CPUs: c.CPUs, MemoryMB: c.MemoryMB, DiskMB: c.DiskMB,
	})
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	build, ok := s.cfg.Engine.BuildFile(m.Build)
	if !ok {
		return fault.New(fault.Invalid, "the oc build %.12s, whose engine wrote checkpoint %s, is not on this machine", m.Build, c.ID)
	}
	p := portable.Parcel{Manifest: manifest, Ranges: img.Ranges()}
	for name, path := range map[string]string{portable.FileEngine: build, portable.FileImage: src.Image.Path} {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		p.Files = append(p.Files, parcelFile(name, f, st.Size()))
	}
	if p.Files[0].Name != portable.FileEngine {
		p.Files[0], p.Files[1] = p.Files[1], p.Files[0]
	}
	for _, name := range []string{store.FileState, store.FileMeta, store.FilePages} {
		f := img.File(name)
		p.Files = append(p.Files, parcelFile(name, f, f.Size()))
	}
	return s.noteDamage(ctx, c, portable.Write(ctx, w, p, progress))
}

// exportBuffer is how much is read at a time.
const exportBuffer = 1 << 20

func parcelFile(name string, r io.ReaderAt, size int64) portable.File {
	return portable.File{Name: name, Size: size, Copy: func(_ context.Context, w io.Writer) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, io.NewSectionReader(r, 0, size), make([]byte, exportBuffer))
		return err
	}}
}

// Import makes a checkpoint of what Export wrote, of a stopped sandbox of its own
// that stands for the one it was taken of. An empty name is the one that it had.
// Progress is told of what is read, and then, from the beginning, of what is stored.
func (s *Service) Import(ctx context.Context, orgID, name string, r io.Reader, progress func(done, total int64)) (_ meta.Checkpoint, err error) {
	got, err := portable.Read(ctx, r, s.cfg.Spool, portable.Limits{}, progress)
	if err != nil {
		return meta.Checkpoint{}, err
	}
	defer got.Close()
	var p parcel
	if err := json.Unmarshal(got.Manifest, &p); err != nil {
		return meta.Checkpoint{}, fault.Wrap(fault.Invalid, err, "the file's manifest cannot be read")
	}
	if name == "" {
		name = p.Checkpoint.Name
	}
	if err := p.check(name); err != nil {
		return meta.Checkpoint{}, err
	}
	if err := s.takeIn(ctx, &p, got); err != nil {
		return meta.Checkpoint{}, err
	}
	now := time.Now()
	sb := meta.Sandbox{
		OrgID: orgID, Name: "imported", Template: p.Template, State: meta.SandboxStopped, Reason: "a checkpoint of it was imported; it never ran here",
		CPUs: p.CPUs, MemoryMB: p.MemoryMB, DiskMB: p.DiskMB, Envs: p.Envs, Metadata: p.Metadata, StartedAt: now, StoppedAt: &now,
	}
	if err := s.cfg.Meta.InsertSandbox(ctx, &sb); err != nil {
		return meta.Checkpoint{}, err
	}
	c := meta.Checkpoint{OrgID: orgID, SandboxID: sb.ID, Name: name, Kind: kindFull}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return c, err
	}
	if err := s.storeImport(ctx, &c, &p, got, progress); err != nil {
		s.fail(ctx, &c, err)
		return c, err
	}
	return c, nil
}

// check refuses what no export of a checkpoint is.
func (p *parcel) check(name string) error {
	switch {
	case p.Kind != kindFull || p.CPUs < 1 || p.MemoryMB < 1 || p.DiskMB < 1 || p.Checkpoint.Build == "" || p.Checkpoint.ImageHash == "":
		return fault.New(fault.Invalid, "the file's manifest is not that of a checkpoint")
	case !validName(name):
		return fault.New(fault.Invalid, "the name must have at most %d printable characters", maxName)
	}
	return nil
}

// takeIn keeps the build and the image that came with a checkpoint, and sees that
// it can run here.
func (s *Service) takeIn(ctx context.Context, p *parcel, got *portable.Received) error {
	m := &p.Checkpoint
	if _, ok := s.cfg.Engine.BuildFile(m.Build); !ok {
		if err := s.cfg.Engine.AddBuild(m.Build, got.Files[portable.FileEngine]); err != nil {
			return err
		}
	}
	if err := s.cfg.Engine.Check(m.Build, m.Requirements); err != nil {
		return err
	}
	if _, err := s.cfg.Images.Path(ctx, m.ImageHash); err != nil {
		return s.cfg.Images.Add(ctx, m.ImageHash, m.TreeHash, got.Files[portable.FileImage])
	}
	return nil
}

// storeImport stores what came and marks the row ready.
func (s *Service) storeImport(ctx context.Context, c *meta.Checkpoint, p *parcel, got *portable.Received, progress func(done, total int64)) error {
	m := p.Checkpoint
	m.Checkpoint, m.Org, m.Sandbox, m.Name, m.Parent, m.CreatedAt = c.ID, c.OrgID, c.SandboxID, c.Name, "", c.CreatedAt.UTC()
	req := store.PutRequest{Manifest: m, Progress: progress}
	var err error
	if req.ImagePath, err = s.cfg.Images.Path(ctx, m.ImageHash); err != nil {
		return err
	}
	req.EnginePath, _ = s.cfg.Engine.BuildFile(m.Build)
	if req.Capture, err = received(got); err != nil {
		return err
	}
	object, stored, err := s.put(ctx, req)
	if err != nil {
		return err
	}
	now := time.Now()
	c.Status, c.ReadyAt, c.SizeBytes, c.AddedBytes, c.Object = meta.CheckpointReady, &now, stored.SizeBytes, stored.AddedBytes, object
	c.ImageHash, c.TreeHash, c.Build = m.ImageHash, m.TreeHash, m.Build
	if err := s.cfg.Meta.UpdateCheckpoint(ctx, c); err != nil {
		c.Object = ""
		return errors.Join(err, s.discard(context.WithoutCancel(ctx), artefact{object: object}))
	}
	return nil
}

// received is the capture in an imported file.
func received(got *portable.Received) (*engine.Capture, error) {
	size := func(name string) (int64, error) {
		st, err := got.Files[name].Stat()
		if err != nil {
			return 0, fmt.Errorf("checkpoint: %w", err)
		}
		return st.Size(), nil
	}
	c := &engine.Capture{
		State: got.Files[portable.FileState], Meta: got.Files[portable.FileMeta], Pages: got.Files[portable.FilePages],
		Ranges: got.Ranges, Close: got.Close,
	}
	var errs [3]error
	c.StateSize, errs[0] = size(portable.FileState)
	c.MetaSize, errs[1] = size(portable.FileMeta)
	c.PagesSize, errs[2] = size(portable.FilePages)
	return c, errors.Join(errs[:]...)
}
