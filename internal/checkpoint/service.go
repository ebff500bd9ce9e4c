// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sync/semaphore"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/killpoint"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/store"
	v1 "github.com/opencomputer/oc/internal/store/v1"
)

// Config of a Service.
type Config struct {
	Meta      *meta.DB
	Sandboxes *sandbox.Service
	Engine    engine.Driver
	Images    sandbox.Images
	Store     *store.Store
	Legacy    *v1.Dir           // checkpoints of the first format; nil: none
	Memory    *admission.Ledger // admits the memory of captures; nil: all of it
	Budget    int64             // memory that all captures together may take, in bytes; what is larger alone goes through the disk
	// DataFree is the number of bytes that the data disk has left.
	DataFree func() (int64, error)
	Spool    string // directory on the data disk for what is imported or unpacked, while it is; empty at the start
	Log      *slog.Logger
}

// Service makes and uses checkpoints.
type Service struct {
	cfg    Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	locks  locks
	arenas *semaphore.Weighted // the Budget; in the order in which it was asked for
	tidy   *time.Timer         // gives memory back
	swept  chan struct{}       // there is something to sweep
}

// The kinds of checkpoints.
const (
	kindFull     = "full"
	kindDiskOnly = "disk_only"
)

// MaxPerSandbox is how many checkpoints of its user's a sandbox may have.
const MaxPerSandbox = 10

// createWait is how long Create waits for ready, if nobody watches its progress,
// before it answers processing; clients give up after 30 s.
const createWait = 25 * time.Second

// New makes the service and hands the sandboxes' expiry, recovery and losses to it.
// Start settles what an earlier server left.
func New(cfg Config) *Service {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{cfg: cfg, ctx: ctx, cancel: cancel, arenas: semaphore.NewWeighted(cfg.Budget), swept: make(chan struct{}, 1)}
	s.tidy = time.AfterFunc(tidyDelay, debug.FreeOSMemory)
	cfg.Sandboxes.OnExpire(s.expire)
	cfg.Sandboxes.OnOrphan(s.rescue)
	cfg.Sandboxes.OnUnsaved(s.saveUnsaved)
	cfg.Sandboxes.OnLost(s.noteLoss)
	return s
}

// Close stops what runs; it ends as failed.
func (s *Service) Close() {
	s.cancel()
	s.wg.Wait()
	s.tidy.Stop()
}

// Start fails the rows that an earlier server left processing, finishes its
// deletions, removes the artefacts of rows that are not ready, and begins to
// sweep the store. What cannot be removed stays for later.
func (s *Service) Start(ctx context.Context) error {
	stored, err := s.artefacts()
	if err != nil {
		return err
	}
	rows, err := s.cfg.Meta.CheckpointsAnyOrg(ctx)
	if err != nil {
		return err
	}
	keep := map[artefact]bool{}
	known := map[string]bool{}
	for _, c := range rows {
		known[c.ID] = true
		switch c.Status {
		case meta.CheckpointProcessing:
			s.fail(ctx, &c, errors.New("the server ended while it was being made"))
		case meta.CheckpointDeleting:
			keep[artefactOf(c)] = true // until finishDeletions
		case meta.CheckpointReady:
			keep[artefactOf(c)] = true
			if _, ok := stored[artefactOf(c)]; ok {
				continue
			}
			// It may come back: the store may be another one by mistake, or not mounted.
			if _, err := s.cfg.Meta.JudgeCheckpoint(ctx, c, meta.CheckpointDamaged, "its data is missing from the store"); err != nil {
				return err
			}
			s.cfg.Log.Error("a checkpoint's data is missing from the store", "checkpoint", c.ID)
		case meta.CheckpointDamaged: // what is left of it may be repaired
			keep[artefactOf(c)] = true
		}
	}
	for a, id := range stored {
		if id == "" {
			continue // it cannot be read: not for us to judge
		}
		if !known[id] {
			// A row exists before its artefact and goes after it: this one is
			// another database's.
			s.cfg.Log.Warn("the store holds a checkpoint that the database does not know; it is left alone", "checkpoint", id)
			continue
		}
		if !keep[a] {
			if err := s.discard(ctx, a); err != nil {
				s.cfg.Log.Error("removing what is left of a checkpoint failed; the next start tries again", "checkpoint", id, "error", err)
			}
		}
	}
	s.finishDeletions(ctx)
	s.wg.Go(s.sweep)
	return nil
}

// Create makes a checkpoint of a running sandbox. It waits until the
// checkpoint is ready, and fails with the reason if that fails; after
// createWait without Progress, or at once with NoWait, it gives the processing row. The work
// goes on when ctx ends.
func (s *Service) Create(ctx context.Context, orgID, sandboxID string, req CreateRequest) (meta.Checkpoint, error) {
	sb, err := s.cfg.Sandboxes.Get(ctx, orgID, sandboxID)
	if err != nil {
		return meta.Checkpoint{}, err
	}
	limit, keep, err := check(sb, req)
	if err != nil {
		return meta.Checkpoint{}, err
	}
	c := meta.Checkpoint{OrgID: orgID, SandboxID: sandboxID, Name: req.Name, Kind: kindFull}
	if err := s.insert(ctx, &c, sb, limit); err != nil {
		return meta.Checkpoint{}, err
	}
	killpoint.Here(killpoint.CheckpointRow)
	done := make(chan error, 1)
	s.wg.Go(func() {
		err := s.make(s.ctx, &c, func(_ context.Context, capt *frozen) { capt.progress = req.Progress })
		if err == nil && keep > 0 {
			s.trim(s.ctx, c, keep)
		}
		done <- err
	})
	if req.NoWait {
		return s.cfg.Meta.Checkpoint(ctx, orgID, c.ID)
	}
	var patience <-chan time.Time
	if req.Progress != nil {
		req.Progress(0, 0) // it has begun
	} else {
		patience = time.After(createWait)
	}
	select {
	case err := <-done:
		return c, err
	case <-patience:
	case <-ctx.Done():
	}
	return s.cfg.Meta.Checkpoint(context.WithoutCancel(ctx), orgID, c.ID)
}

// maxName bounds a checkpoint's name, in characters.
const maxName = 100

// check gives the limit for the insertion, and how many to keep afterwards (0:
// no trimming).
func check(sb meta.Sandbox, req CreateRequest) (limit, keep int, err error) {
	switch {
	case sb.State != meta.SandboxRunning:
		return 0, 0, fault.New(fault.Invalid, "sandbox must be running to create a checkpoint; %s is %s", sb.ID, sb.State)
	case req.Name == "":
		return 0, 0, fault.New(fault.Invalid, "name is required")
	case !validName(req.Name):
		return 0, 0, fault.New(fault.Invalid, "the name must have at most %d printable characters", maxName)
	case req.Kind == kindDiskOnly:
		return 0, 0, fault.New(fault.Invalid, "checkpoints of kind disk_only are not available in this release").WithHint("use kind full")
	case req.Kind != "" && req.Kind != kindFull:
		return 0, 0, fault.New(fault.Invalid, "kind must be full or disk_only")
	}
	switch req.Retention.Mode {
	case "", "none":
		return MaxPerSandbox, 0, nil
	case "delete_oldest":
		keep = req.Retention.MaxCount
		if keep == 0 {
			keep = MaxPerSandbox
		}
		if keep < 1 || keep > MaxPerSandbox {
			return 0, 0, fault.New(fault.Invalid, "retention maxCount must be from 1 to %d", MaxPerSandbox)
		}
		// One more than the limit for as long as it takes to trim: a good
		// checkpoint is not given up for one that may fail.
		return MaxPerSandbox + 1, keep, nil
	}
	return 0, 0, fault.New(fault.Invalid, "retention mode must be none or delete_oldest")
}

func validName(name string) bool {
	return name != "" && utf8.RuneCountInString(name) <= maxName && !strings.ContainsFunc(name, unicode.IsControl)
}

// insert makes the processing row. A limit of 0 is none.
func (s *Service) insert(ctx context.Context, c *meta.Checkpoint, sb meta.Sandbox, limit int) error {
	c.Status, c.Template, c.Envs = meta.CheckpointProcessing, sb.Template, sb.Envs
	c.CPUs, c.MemoryMB, c.DiskMB = sb.CPUs, sb.MemoryMB, sb.DiskMB
	return s.cfg.Meta.InsertCheckpoint(ctx, c, limit)
}

// explain makes a failure of ours one that says what failed, and why.
func explain(err error, format string, args ...any) error {
	if err == nil || fault.As(err).Kind != fault.Internal || fault.Is(err, fault.Internal) {
		return err
	}
	return fault.Wrap(fault.Internal, err, "%s: %s", fmt.Sprintf(format, args...), err)
}

// fail settles a row as failed. The user's part of the reason is kept.
func (s *Service) fail(ctx context.Context, c *meta.Checkpoint, why error) {
	now := time.Now()
	c.Status, c.FailedAt, c.ErrorMsg = meta.CheckpointFailed, &now, reason(why)
	if err := s.cfg.Meta.UpdateCheckpoint(context.WithoutCancel(ctx), c); err != nil {
		s.cfg.Log.Error("recording a failed checkpoint", "checkpoint", c.ID, "error", err)
	}
	s.kick() // what was written of it goes
	s.cfg.Log.Warn("checkpoint failed", "checkpoint", c.ID, "sandbox", c.SandboxID, "error", why)
}

func reason(err error) string {
	if f := fault.As(err); f.Kind != fault.Internal {
		return f.Message
	}
	return err.Error()
}

// trim deletes the sandbox's oldest ready checkpoints of its user's beyond
// keep.
func (s *Service) trim(ctx context.Context, c meta.Checkpoint, keep int) {
	rows, err := s.cfg.Meta.Checkpoints(ctx, c.OrgID, c.SandboxID)
	if err != nil {
		s.cfg.Log.Error("retention", "sandbox", c.SandboxID, "error", err)
		return
	}
	rows = slices.DeleteFunc(rows, func(r meta.Checkpoint) bool { return r.Automatic || r.Status != meta.CheckpointReady })
	for _, old := range rows[min(keep, len(rows)):] { // newest first
		if err := s.Delete(ctx, c.OrgID, c.SandboxID, old.ID); err != nil {
			s.cfg.Log.Error("retention", "checkpoint", old.ID, "error", err)
		}
	}
}

// List gives the checkpoints of a sandbox in any state, newest first.
func (s *Service) List(ctx context.Context, orgID, sandboxID string) ([]meta.Checkpoint, error) {
	if _, err := s.cfg.Sandboxes.Get(ctx, orgID, sandboxID); err != nil {
		return nil, err
	}
	return s.cfg.Meta.Checkpoints(ctx, orgID, sandboxID)
}

// Get gives one checkpoint.
func (s *Service) Get(ctx context.Context, orgID, id string) (meta.Checkpoint, error) {
	c, err := s.cfg.Meta.Checkpoint(ctx, orgID, id)
	if err == nil && c.Status == meta.CheckpointDeleting {
		return meta.Checkpoint{}, fault.New(fault.NotFound, "checkpoint not found")
	}
	return c, err
}

// deleteWait is how long Delete waits for those who use a checkpoint.
const deleteWait = 10 * time.Second

// Delete removes a checkpoint and gives its space back. Sandboxes spawned from
// it live on, those that are still loading too. While it is exported, restored or
// spawned from, that is a Conflict, after a moment.
func (s *Service) Delete(ctx context.Context, orgID, sandboxID, id string) error {
	c, err := s.Get(ctx, orgID, id)
	if err != nil {
		return err
	}
	if c.SandboxID != sandboxID {
		return fault.New(fault.Invalid, "checkpoint %s does not belong to sandbox %s", id, sandboxID)
	}
	if c.Status == meta.CheckpointProcessing {
		return fault.New(fault.Conflict, "checkpoint %s is still being made", id).WithHint("wait until it is ready or failed")
	}
	unlock, err := s.lockToDelete(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err = s.Get(ctx, orgID, id); err != nil { // deleted meanwhile
		return err
	}
	if c.Status == meta.CheckpointDamaged {
		s.cfg.Store.Distrust(c.Object) // also what others share with it
	}
	c.Status = meta.CheckpointDeleting
	if err := s.cfg.Meta.UpdateCheckpoint(ctx, &c); err != nil {
		return err
	}
	killpoint.Here(killpoint.DeleteMarked)
	if err := s.remove(ctx, c); err != nil {
		s.kick()
		return fault.Wrap(fault.As(err).Kind, err, "checkpoint %s is deleted, but its data could not be removed yet: %s", id, reason(err)).
			WithHint("%s", cmp.Or(fault.As(err).Hint, "the server tries again by itself"))
	}
	return nil
}

func (s *Service) lockToDelete(ctx context.Context, id string) (unlock func(), err error) {
	waiting, cancel := context.WithTimeout(ctx, deleteWait)
	defer cancel()
	unlock, err = s.locks.lock(waiting, id)
	if err != nil && ctx.Err() == nil {
		err = fault.New(fault.Conflict, "checkpoint %s is being exported, restored or spawned from", id).WithHint("try again when that is done")
	}
	return unlock, err
}

// remove finishes the deletion of a row that is marked for it, and locked.
func (s *Service) remove(ctx context.Context, c meta.Checkpoint) error {
	if err := s.discard(ctx, artefactOf(c)); err != nil {
		return err
	}
	killpoint.Here(killpoint.DeleteDiscarded)
	return s.cfg.Meta.DeleteCheckpointRow(ctx, c.ID)
}

// finishDeletions removes the rows that are marked for it and that nobody is at.
// One that cannot be removed now is tried again with the next sweep.
func (s *Service) finishDeletions(ctx context.Context) {
	rows, err := s.cfg.Meta.CheckpointsAnyOrg(ctx, meta.CheckpointDeleting)
	if err != nil {
		s.cfg.Log.Error("finishing deletions failed", "error", err)
	}
	for _, c := range rows {
		if s.locks.held(c.ID) {
			continue
		}
		unlock, err := s.locks.lock(ctx, c.ID)
		if err != nil {
			return
		}
		err = s.remove(ctx, c)
		unlock()
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("deleting a checkpoint failed; it is tried again", "checkpoint", c.ID, "error", err)
		}
	}
}

// automaticName makes the name of an automatic checkpoint: a prefix and 8 hex
// digits.
func automaticName(prefix string) string { return meta.NewID(prefix) }
