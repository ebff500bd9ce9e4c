// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

// Fork is a checkpoint and a spawn in one step. The checkpoint stays, named
// "fork-…". The new sandboxes are made of the captured memory, and Fork does not
// wait until that is stored: the checkpoint it gives may be processing. If it
// fails then, the sandboxes live on.
func (s *Service) Fork(ctx context.Context, orgID, sandboxID string, req SpawnRequest) (meta.Checkpoint, []meta.Sandbox, error) {
	if err := req.complete(); err != nil {
		return meta.Checkpoint{}, nil, err
	}
	sb, err := s.cfg.Sandboxes.Get(ctx, orgID, sandboxID)
	if err != nil {
		return meta.Checkpoint{}, nil, err
	}
	if sb.State != meta.SandboxRunning {
		return meta.Checkpoint{}, nil, fault.New(fault.Invalid, "sandbox must be running to be forked; %s is %s", sb.ID, sb.State)
	}
	c := meta.Checkpoint{
		OrgID: orgID, SandboxID: sandboxID, Name: automaticName("fork"), Kind: kindFull, Automatic: true,
		ParentID: sb.LastCheckpoint, // what its sandboxes load from too, before it is stored
	}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return meta.Checkpoint{}, nil, err
	}
	defer s.cfg.Sandboxes.Quiet()()
	f := &forking{s: s, c: c, frozen: make(chan struct{}), spawned: make(chan struct{}), stored: make(chan struct{})}
	f.store = sync.OnceFunc(func() { close(f.spawned) })
	work, cancel := context.WithCancel(s.ctx)
	s.wg.Go(func() {
		defer cancel()
		f.make(work)
	})
	select {
	case <-f.frozen:
	case <-ctx.Done(): // nobody asked for the checkpoint alone
		cancel()
		<-f.stored
		if f.capt != nil {
			f.capt.close()
		}
		return c, nil, ctx.Err()
	}
	if f.capt == nil {
		<-f.stored
		return c, nil, f.err
	}
	made, err := f.spawn(ctx, f.capt, req)
	if err != nil { // nobody asked for the checkpoint alone
		f.store()
		<-f.stored
		return c, nil, errors.Join(err, s.Delete(context.WithoutCancel(ctx), orgID, sandboxID, c.ID))
	}
	time.AfterFunc(firstWork, f.store)
	now, err := s.cfg.Meta.CheckpointAnyOrg(context.WithoutCancel(ctx), c.ID)
	return now, made, err
}

// forking is a Fork in progress: one goroutine captures and stores, another makes
// sandboxes of the capture.
type forking struct {
	s *Service
	c meta.Checkpoint

	frozen  chan struct{} // closed when there is a capture, or will be none
	capt    *frozen       // by then; to be closed by Fork
	spawned chan struct{} // closed by store
	store   func()        // has the capture be stored; once or more often
	stored  chan struct{} // closed at the end
	err     error         // of it, by then
}

// The storing of a capture waits for the sandboxes that are made of it, whose first
// answers it would take the CPUs from: at most storeDelay until they are there, and
// then for firstWork, in which their first command is given.
const (
	storeDelay = time.Second
	firstWork  = 100 * time.Millisecond
)

// make captures the sandbox, and stores the capture.
func (f *forking) make(ctx context.Context) {
	defer close(f.stored)
	told := sync.OnceFunc(func() { close(f.frozen) })
	defer told()
	c := f.c
	f.err = f.s.make(ctx, &c, func(turn context.Context, capt *frozen) {
		capt.hold()
		f.capt = capt
		told()
		select {
		case <-f.spawned:
		case <-time.After(storeDelay):
		case <-turn.Done():
		}
	})
}

// spawn makes the sandboxes of the capture, or of the stored checkpoint where the
// capture cannot be handed to a pager.
func (f *forking) spawn(ctx context.Context, capt *frozen, req SpawnRequest) ([]meta.Sandbox, error) {
	s := f.s
	where, files, ok, err := f.handOver(ctx, capt)
	if err != nil || !ok {
		capt.close()
		f.store()
		<-f.stored
		if err = errors.Join(err, f.err); err != nil {
			return nil, err
		}
		return s.Spawn(ctx, f.c.OrgID, f.c.ID, req)
	}
	defer files[len(files)-1].Close()
	made, loaded, err := f.spawnOf(ctx, capt, where, files, req)
	if err != nil {
		capt.close()
		return nil, err
	}
	s.wg.Go(func() { // the memory counts until the pager, which goes on without this server, needs it no more
		defer capt.close()
		select {
		case <-loaded:
		case <-s.ctx.Done():
		}
	})
	return made, nil
}

// handOver gives what a pager needs to read the capture; ok is false where it
// cannot have it.
func (f *forking) handOver(ctx context.Context, capt *frozen) (where string, files []*os.File, ok bool, err error) {
	if ok, err = f.s.cfg.Engine.ReadsStore(ctx, capt.proc.Build, capt.proc.Engine); err != nil || !ok {
		return "", nil, false, err
	}
	return f.s.cfg.Store.Captured(capt.Capture, capt.base, f.c.ID)
}

func (f *forking) spawnOf(ctx context.Context, capt *frozen, where string, files []*os.File, req SpawnRequest) ([]meta.Sandbox, <-chan struct{}, error) {
	s := f.s
	img, err := s.cfg.Meta.Image(ctx, capt.gen.ImageHash)
	if err != nil {
		return nil, nil, err
	}
	path, err := s.cfg.Images.Path(ctx, img.Hash)
	if err != nil {
		return nil, nil, err
	}
	c := f.c
	c.CPUs, c.MemoryMB, c.DiskMB = capt.gen.CPUs, capt.gen.MemoryMB, capt.gen.DiskMB
	return s.spawn(ctx, c, sandbox.Source{
		Checkpoint: c.ID, Artefact: engine.Source{Location: where, Files: files, Build: capt.proc.Build, Engine: capt.proc.Engine},
		Image:  sandbox.Image{Template: c.Template, TreeHash: img.TreeHash, Hash: img.Hash, Path: path},
		Memory: loads(capt.StateSize, capt.Ranges),
	}, req)
}
