// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/store"
	"github.com/opencomputer/oc/internal/store/refs"
)

// artefact is where the bytes of a checkpoint are: in an object of the store or,
// in the first format, in a directory named by its id.
type artefact struct {
	object string
	legacy string
}

func artefactOf(c meta.Checkpoint) artefact {
	if c.Object != "" {
		return artefact{object: c.Object}
	}
	return artefact{legacy: c.ID}
}

// artefacts gives all that there are, with the ids of their checkpoints.
func (s *Service) artefacts() (map[artefact]string, error) {
	out := map[artefact]string{}
	for object, id := range s.cfg.Store.List() {
		out[artefact{object: object}] = id
	}
	if s.cfg.Legacy != nil {
		ids, err := s.cfg.Legacy.List()
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			out[artefact{legacy: id}] = id
		}
	}
	return out, nil
}

// discard deletes one, and has its space given back soon.
func (s *Service) discard(ctx context.Context, a artefact) error {
	if a.object == "" {
		if s.cfg.Legacy == nil {
			return nil
		}
		return s.cfg.Legacy.Delete(a.legacy)
	}
	if err := s.cfg.Store.Delete(ctx, a.object); err != nil {
		return err
	}
	s.kick()
	return nil
}

// reach opens one, and gives what the store calls its place.
func (s *Service) reach(ctx context.Context, a artefact) (store.Checkpoint, string, error) {
	if a.object != "" {
		img, err := s.cfg.Store.Image(ctx, a.object)
		if err != nil {
			return nil, "", err
		}
		return img, s.cfg.Store.Location(a.object), nil
	}
	if s.cfg.Legacy == nil {
		return nil, "", fault.New(fault.NotFound, "checkpoint %s has no data in the store", a.legacy)
	}
	dir := s.cfg.Legacy.Path(a.legacy)
	img, err := store.OpenLegacy(dir)
	return img, dir, err
}

// reachRow is reach for a checkpoint that has a row: that the store has nothing of
// it is damage, unless it has been deleted meanwhile.
func (s *Service) reachRow(ctx context.Context, c meta.Checkpoint) (store.Checkpoint, string, error) {
	img, place, err := s.reach(ctx, artefactOf(c))
	if fault.Is(err, fault.NotFound) {
		if _, err := s.Get(ctx, c.OrgID, c.ID); err != nil {
			return nil, "", err
		}
		err = fault.New(fault.Damaged, "checkpoint %s has no data in the store", c.ID).WithHint("oc store check says what else is missing")
	}
	return img, place, err
}

// rests sees to it that the build and the image that a checkpoint rests on are
// on this machine, and gives the image's file. progress, unless nil, is told of
// what has to be fetched for that.
func (s *Service) rests(ctx context.Context, img store.Checkpoint, progress func(done, total int64)) (imagePath string, err error) {
	m := img.Manifest()
	im, kept := img.(*store.Image)
	_, here := s.cfg.Engine.BuildFile(m.Build)
	_, missing := s.cfg.Images.Path(ctx, m.ImageHash)
	var build, image int64 // bytes to be fetched
	if !here && kept && m.Engine != nil {
		build = m.Engine.Size
	}
	if missing != nil && kept && m.Image != nil {
		image = m.Image.Size
	}
	from := func(before int64) func(done, total int64) {
		if progress == nil {
			return nil
		}
		return func(done, _ int64) { progress(before+done, build+image) }
	}
	if build > 0 {
		err := receive(func(w io.Writer) error { return im.FetchEngine(ctx, w, from(0)) }, func(r io.Reader) error { return s.cfg.Engine.AddBuild(m.Build, r) })
		if err != nil {
			return "", err
		}
	}
	if err := s.cfg.Engine.Check(m.Build, m.Requirements); err != nil {
		return "", err
	}
	if image > 0 {
		err := receive(func(w io.Writer) error { return im.FetchImage(ctx, w, from(build)) }, func(r io.Reader) error { return s.cfg.Images.Add(ctx, m.ImageHash, m.TreeHash, r) })
		if err != nil {
			return "", err
		}
	}
	return s.cfg.Images.Path(ctx, m.ImageHash)
}

// receive hands what give writes to take. An error of give is take's to see.
func receive(give func(io.Writer) error, take func(io.Reader) error) error {
	r, w := io.Pipe()
	given := make(chan error, 1)
	go func() {
		err := give(w)
		w.CloseWithError(err) // nil is the end
		given <- err
	}()
	err := take(r)
	r.CloseWithError(errors.New("not wanted any more"))
	if gave := <-given; gave != nil && err != nil {
		return gave // the cause
	}
	return err
}

// parent is the checkpoint that a state descends from, being opened beside what else
// precedes the freeze.
type parent struct {
	opened chan struct{}
	img    *store.Image // nil: there is none, or it was taken
	base   *engine.Base
}

// openParent begins to open a checkpoint, to be closed.
func (s *Service) openParent(ctx context.Context, id string) *parent {
	p := &parent{opened: make(chan struct{})}
	go func() {
		defer close(p.opened)
		p.img, p.base = s.base(ctx, id)
	}()
	return p
}

// take waits until it is opened, and makes it the caller's.
func (p *parent) take() (*store.Image, *engine.Base) {
	<-p.opened
	img := p.img
	p.img = nil
	return img, p.base
}

// close closes it unless it was taken.
func (p *parent) close() {
	if img, _ := p.take(); img != nil {
		img.Close()
	}
}

// base opens the checkpoint that a state descends from, so that a capture copies
// only what differs; nil where there is none that can be had.
func (s *Service) base(ctx context.Context, id string) (*store.Image, *engine.Base) {
	if id == "" {
		return nil, nil
	}
	c, err := s.cfg.Meta.CheckpointAnyOrg(ctx, id)
	if err != nil || c.Status != meta.CheckpointReady || c.Object == "" {
		return nil, nil
	}
	img, err := s.cfg.Store.Image(ctx, c.Object)
	if err != nil {
		s.cfg.Log.Warn("a checkpoint's parent cannot be opened: all of it is captured", "parent", id, "error", err)
		return nil, nil
	}
	b, err := img.Base(ctx)
	if err != nil {
		s.cfg.Log.Warn("a checkpoint's parent cannot be compared with: all of it is captured", "parent", id, "error", err)
		img.Close()
		return nil, nil
	}
	return img, b
}

// expected is how much a capture on a base will copy, in bytes: twice what the
// last one did, or a part of everything if that copied all.
func expected(m *store.Manifest) int64 {
	const least, part = 16 << 20, 16
	n := 2 * m.CopiedBytes
	if n > m.SizeBytes {
		n = m.SizeBytes / part
	}
	return max(n, least)
}

const (
	// sweepDelay gathers deletions that come together.
	sweepDelay = 2 * time.Second
	// sweepEvery is how often one comes unasked: a server that was killed has left a
	// claim on what it wrote or read, which can be ended when it has expired.
	sweepEvery = 2 * refs.DefaultTTL
	// auditEvery is how often a sweep looks at everything there is.
	auditEvery = 6 * time.Hour
	// sweepPending is when what could not be freed yet is looked at again.
	sweepPending = 15 * time.Second
	// sweepRetry is when one that failed is tried again.
	sweepRetry = time.Minute
)

// kick has the next sweep come soon.
func (s *Service) kick() {
	select {
	case s.swept <- struct{}{}:
	default: // it will come
	}
}

// sweep finishes deletions and frees what nobody needs, soon after something was deleted and now and
// then, until the service is closed.
func (s *Service) sweep() {
	var due time.Time // of the next audit
	timer := time.NewTimer(sweepDelay)
	defer timer.Stop()
	next := time.Now().Add(sweepDelay)
	again := func(in time.Duration) {
		next = time.Now().Add(in)
		timer.Reset(in)
	}
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.swept:
			if time.Until(next) > sweepDelay { // else it comes, however much more is deleted until then
				again(sweepDelay)
			}
			continue
		case <-timer.C:
		}
		s.finishDeletions(s.ctx)
		audit := !time.Now().Before(due)
		r, err := s.cfg.Store.Sweep(s.ctx, refs.Options{Audit: audit})
		switch {
		case s.ctx.Err() != nil:
			return
		case err != nil:
			s.cfg.Log.Error("freeing space in the store failed", "error", err)
			again(sweepRetry)
			continue
		case r.Packs > 0:
			s.cfg.Log.Info("space freed in the store", "bytes", r.Bytes, "objects", r.Packs)
		}
		if audit {
			due = time.Now().Add(auditEvery)
		}
		if r.Pending > 0 { // somebody still reads it
			again(sweepPending)
		} else {
			again(sweepEvery)
		}
	}
}
