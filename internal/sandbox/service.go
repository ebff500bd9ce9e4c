// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// Keeper holds the host ends of agents' sockets over a restart of the server.
type Keeper interface {
	Put(ctx context.Context, name string, files ...syscall.Conn) error
	Get(ctx context.Context, name string) ([]*os.File, error)
	List(ctx context.Context) ([]string, error)
	Drop(ctx context.Context, name string) error
}

// Images finds the image that a sandbox runs on.
type Images interface {
	// Resolve gives the image of a template for this build's agent, making it
	// if need be. progress may be nil.
	Resolve(ctx context.Context, orgID, template string, progress func(string)) (Image, error)
	// Path is the file of an image that exists.
	Path(ctx context.Context, imageHash string) (string, error)
	// Add takes in an image that a checkpoint rests on; what r gives must have the
	// hash.
	Add(ctx context.Context, imageHash, treeHash string, r io.Reader) error
}

// Image is what Images.Resolve found.
type Image struct {
	Template string // the name that the request's stands for
	TreeHash string
	Hash     string
	Path     string
}

// Config of a Service.
type Config struct {
	Meta   *meta.DB
	Engine engine.Driver
	Keeper Keeper
	Images Images
	Limits Limits
	// Memory admits what starts; nil: everything.
	Memory *admission.Ledger
	// PoolSize is how many engine processes are kept prepared; 0 = none.
	PoolSize int
	Log      *slog.Logger
	// Now is the clock of timeouts; nil = time.Now.
	Now func() time.Time
	// OperationWait bounds how long an operation waits for its turn; 0 = 5 min.
	OperationWait time.Duration
	// StartTimeout bounds the start of an engine process without a state; 0 = 1 min.
	StartTimeout time.Duration
	// AdoptTimeout is how long an agent may take to answer a new server before its
	// sandbox is recovered without it; 0 = 20 s.
	AdoptTimeout time.Duration
	// RetryPause is how long the background waits before it tries again what failed;
	// each time twice as long, up to retryMost. 0 = 2 s.
	RetryPause time.Duration
	// Expire saves a sandbox whose rolling timeout passed, during an operation
	// on it; it is stopped when Expire succeeds, and runs on if it fails.
	Expire func(ctx context.Context, op *Operation, sb meta.Sandbox) error
	// Recover saves a sandbox whose engine runs but whose channel is lost, and
	// puts a generation with a fresh one in its place, during an operation on it.
	Recover func(ctx context.Context, op *Operation, sb meta.Sandbox, gen meta.Generation) error
	// Keep saves a generation that was replaced, whose saving failed or was not
	// finished by an earlier server.
	Keep func(ctx context.Context, sb meta.Sandbox, gen meta.Generation) error
	// Lost hears why a run was lost by the pager that loaded it from a checkpoint,
	// before the sandbox ends.
	Lost func(ctx context.Context, checkpoint string, why error)
}

// Service is the life cycle of this node's sandboxes.
type Service struct {
	cfg    Config
	ctx    context.Context // ends with Close: background work of this server
	cancel context.CancelFunc
	wg     sync.WaitGroup

	pool *pool

	recoveries chan struct{} // holds a token for each sandbox that is being recovered

	mu    sync.Mutex
	boxes map[string]*box
}

// New makes the service. Start adopts what runs.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OperationWait == 0 {
		cfg.OperationWait = operationWait
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = startTimeout
	}
	if cfg.AdoptTimeout == 0 {
		cfg.AdoptTimeout = adoptTimeout
	}
	if cfg.RetryPause == 0 {
		cfg.RetryPause = retryPause
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{cfg: cfg, ctx: ctx, cancel: cancel, boxes: map[string]*box{}, recoveries: make(chan struct{}, runtime.NumCPU())}
	s.pool = newPool(s, cfg.PoolSize)
	return s
}

// OnExpire sets Config.Expire, OnOrphan Config.Recover; both usually need the
// service to exist. They must be called before Start.
func (s *Service) OnExpire(f func(ctx context.Context, op *Operation, sb meta.Sandbox) error) {
	s.cfg.Expire = f
}

// OnOrphan sets Config.Recover.
func (s *Service) OnOrphan(f func(ctx context.Context, op *Operation, sb meta.Sandbox, gen meta.Generation) error) {
	s.cfg.Recover = f
}

// OnUnsaved sets Config.Keep.
func (s *Service) OnUnsaved(f func(ctx context.Context, sb meta.Sandbox, gen meta.Generation) error) {
	s.cfg.Keep = f
}

// OnLost sets Config.Lost.
func (s *Service) OnLost(f func(ctx context.Context, checkpoint string, why error)) {
	s.cfg.Lost = f
}

// Rekeep hands the channels of all runs, and of what is prepared, to the keeper
// again, which is a new one.
func (s *Service) Rekeep(ctx context.Context) error {
	s.mu.Lock()
	boxes := slices.Collect(maps.Values(s.boxes))
	s.mu.Unlock()
	var errs []error
	for _, b := range boxes {
		if run, _ := b.current(); run != nil {
			if err := s.cfg.Keeper.Put(ctx, run.gen.ID, run.agent); err != nil && !run.retired() {
				errs = append(errs, err)
			}
		}
	}
	for _, sd := range s.pool.seeds() {
		errs = append(errs, s.cfg.Keeper.Put(ctx, sd.gen.ID, sd.host))
	}
	return errors.Join(errs...)
}

// rekeep hands the channel of a run, or of what is prepared, to the keeper once more,
// when Rekeep knows of it: the keeper that got it may have died while it came up.
// Without it the next server would have to recover the sandbox.
func (s *Service) rekeep(ctx context.Context, generation string, channel syscall.Conn) {
	if err := s.cfg.Keeper.Put(ctx, generation, channel); err != nil {
		s.cfg.Log.Warn("handing a channel to the keeper", "generation", generation, "error", err)
	}
}

// Close ends the server's part: sandboxes run on.
func (s *Service) Close() {
	s.pool.close()
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.boxes {
		if r := b.take(); r != nil {
			r.retire()
		}
	}
}

// Get gives a sandbox in any state, NotFound for a foreign one.
func (s *Service) Get(ctx context.Context, orgID, id string) (meta.Sandbox, error) {
	sb, err := s.cfg.Meta.Sandbox(ctx, orgID, id)
	if err == nil && sb.State == meta.SandboxPending {
		return meta.Sandbox{}, fault.New(fault.NotFound, "sandbox not found")
	}
	s.refresh(&sb)
	return sb, err
}

// refresh puts the start of the rolling timeout in, which the row has only
// roughly.
func (s *Service) refresh(sb *meta.Sandbox) {
	s.mu.Lock()
	b := s.boxes[sb.ID]
	s.mu.Unlock()
	if b == nil {
		return
	}
	if active := b.lastActive(s.cfg.Now()); active.After(sb.LastActiveAt) {
		sb.LastActiveAt = active
	}
}

// maxListed bounds a list.
const maxListed = 200

// List gives the org's sandboxes, newest first: those that run or are in
// error, or, with all, the stopped ones too.
func (s *Service) List(ctx context.Context, orgID string, all bool) ([]meta.Sandbox, error) {
	f := meta.SandboxFilter{Limit: maxListed, States: []meta.SandboxState{meta.SandboxRunning, meta.SandboxError}}
	if all {
		f.States = append(f.States, meta.SandboxStopped)
	}
	rows, err := s.cfg.Meta.Sandboxes(ctx, orgID, f)
	for i := range rows {
		s.refresh(&rows[i])
	}
	return rows, err
}

// SetTimeout changes the rolling timeout and starts it anew; 0 = never.
func (s *Service) SetTimeout(ctx context.Context, orgID, id string, seconds int) error {
	if err := checkTimeout(seconds); err != nil {
		return err
	}
	sb, err := s.Get(ctx, orgID, id)
	if err != nil {
		return err
	}
	if err := running(sb); err != nil {
		return err
	}
	if err := s.cfg.Meta.SetSandboxTimeout(ctx, id, seconds); err != nil {
		return err
	}
	b := s.box(id)
	b.setTimeout(seconds)
	b.touch(s.cfg.Now())
	return nil
}

// Kill ends a sandbox for good: its processes and its files. Checkpoints and
// forks stay. Of a stopped one it ends what an earlier restore replaced, if that is
// still to be stored. An operation that runs on it is cancelled and waited for.
func (s *Service) Kill(ctx context.Context, orgID, id string) error {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return err
	}
	if over, err := s.over(ctx, id); over || err != nil {
		return err
	}
	pardon := s.box(id).doom(fault.New(fault.Gone, "sandbox %s was killed", id))
	defer pardon() // if this fails
	return s.Operate(ctx, id, opKill, func(ctx context.Context, op *Operation) error {
		if over, err := s.over(ctx, id); over || err != nil {
			return err
		}
		return op.kill(ctx)
	})
}

// over tells whether a sandbox has been stopped, and nothing of it is to be saved.
func (s *Service) over(ctx context.Context, id string) (bool, error) {
	sb, err := s.cfg.Meta.SandboxAnyOrg(ctx, id)
	if err != nil || sb.State != meta.SandboxStopped {
		return false, err
	}
	gens, err := s.unsaved(ctx, id)
	return len(gens) == 0, err
}

// Acquire gives the use of the sandbox's agent. It waits while the sandbox is
// between two generations.
func (s *Service) Acquire(ctx context.Context, orgID, id string) (*Lease, error) {
	for range acquireAttempts {
		sb, err := s.Get(ctx, orgID, id)
		if err != nil {
			return nil, err
		}
		if err := running(sb); err != nil {
			return nil, err
		}
		b := s.box(id)
		run, wait := b.use(sb.GenerationID, s.cfg.Now())
		if run != nil {
			return NewLease(run.agent, sb, run.gen.Timeline, run.changed, func() { b.end(s.cfg.Now()) }), nil
		}
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if err := b.whyRecovering(); err != nil {
			return nil, err
		}
		// The row was read before an operation changed it: look again when that
		// is over.
		if err := s.settle(ctx, b); err != nil {
			return nil, err
		}
	}
	return nil, fault.New(fault.Unavailable, "sandbox %s is not ready", id).WithHint("try again")
}

// acquireAttempts bounds how often Acquire looks again.
const acquireAttempts = 20

// settle waits until no operation is running on the sandbox.
func (s *Service) settle(ctx context.Context, b *box) error {
	if err := b.lock(ctx); err != nil {
		return err
	}
	b.unlock()
	return nil
}

// running says why a sandbox cannot be used now, or nil.
func running(sb meta.Sandbox) error {
	switch sb.State {
	case meta.SandboxRunning:
		return nil
	case meta.SandboxStopped:
		return fault.New(fault.Gone, "sandbox %s has been stopped", sb.ID)
	case meta.SandboxError:
		return fault.New(fault.Gone, "sandbox %s has been stopped: %s", sb.ID, sb.Reason).
			WithHint("spawn a new sandbox from one of its checkpoints, or kill it")
	}
	return fault.New(fault.Conflict, "sandbox %s is %s", sb.ID, sb.State)
}
