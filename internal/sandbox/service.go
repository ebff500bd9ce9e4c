// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

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
	Log    *slog.Logger
	// Now is the clock of timeouts; nil = time.Now.
	Now func() time.Time
	// Expire saves a sandbox whose rolling timeout passed, during an operation
	// on it; it is stopped when Expire succeeds, and runs on if it fails.
	Expire func(ctx context.Context, op *Operation, sb meta.Sandbox) error
	// Recover saves a sandbox whose engine runs but whose channel is lost, and
	// puts a generation with a fresh one in its place, during an operation on it.
	Recover func(ctx context.Context, op *Operation, sb meta.Sandbox, gen meta.Generation) error
}

// Service is the life cycle of this node's sandboxes.
type Service struct {
	cfg    Config
	ctx    context.Context // ends with Close: background work of this server
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	boxes map[string]*box
}

// New makes the service. Start adopts what runs.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Service{cfg: cfg, ctx: ctx, cancel: cancel, boxes: map[string]*box{}}
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

// Rekeep hands the channels of all runs to the keeper again, which is a new one.
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
	return errors.Join(errs...)
}

// Close ends the server's part: sandboxes run on.
func (s *Service) Close() {
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
	return sb, err
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
	return s.cfg.Meta.Sandboxes(ctx, orgID, f)
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
// forks stay. Killing a stopped one is nil. An operation that runs on it is
// cancelled and waited for.
func (s *Service) Kill(ctx context.Context, orgID, id string) error {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return err
	}
	b := s.box(id)
	b.cancelOperation(fault.New(fault.Gone, "sandbox %s was killed", id))
	return s.Operate(ctx, id, "kill", func(ctx context.Context, op *Operation) error {
		sb, err := s.cfg.Meta.Sandbox(ctx, orgID, id)
		if err != nil || sb.State == meta.SandboxStopped {
			return err
		}
		return op.Stop(ctx, "user_requested")
	})
}

// Acquire gives the use of the sandbox's agent. It waits while the sandbox is
// between two generations.
func (s *Service) Acquire(ctx context.Context, orgID, id string) (*Lease, error) {
	for {
		sb, err := s.Get(ctx, orgID, id)
		if err != nil {
			return nil, err
		}
		if err := running(sb); err != nil {
			return nil, err
		}
		b := s.box(id)
		run, wait := b.current()
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if run == nil || run.gen.ID != sb.GenerationID {
			// The row is ahead of the memory or behind it for an instant, at
			// the end of an operation: look again when that has settled.
			if err := s.settle(ctx, b); err != nil {
				return nil, err
			}
			if run, _ = b.current(); run == nil {
				return nil, fault.New(fault.Unavailable, "sandbox %s is not ready", id).WithHint("try again")
			}
			continue
		}
		b.begin(s.cfg.Now())
		var once sync.Once
		return &Lease{
			Agent: run.agent, Sandbox: sb, Timeline: run.gen.Timeline, Changed: run.changed,
			release: func() { once.Do(func() { b.end(s.cfg.Now()) }) },
		}, nil
	}
}

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

// box is what the server holds in memory for a sandbox.
type box struct {
	id   string
	slot chan struct{} // holds a token while an operation runs

	mu       sync.Mutex
	run      *Run
	gate     chan struct{} // not nil: calls wait until it is closed
	op       context.CancelCauseFunc
	opName   string
	leases   int
	active   time.Time // start of the rolling timeout
	touched  time.Time // last time that active was stored
	timeout  time.Duration
	expiring bool
}

func (s *Service) box(id string) *box {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.boxes[id]
	if b == nil {
		b = &box{id: id, slot: make(chan struct{}, 1), active: s.cfg.Now()}
		s.boxes[id] = b
	}
	return b
}

// forget drops the box of a sandbox that ended.
func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.boxes, id)
}

func (b *box) lock(ctx context.Context) error {
	select {
	case b.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *box) unlock() { <-b.slot }

func (b *box) current() (*Run, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.run, b.gate
}

// install makes r the current run and gives the one before.
func (b *box) install(r *Run) *Run {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.run
	b.run = r
	return old
}

func (b *box) take() *Run { return b.install(nil) }

// closeGate makes calls wait; the function it gives lets them go on.
func (b *box) closeGate() (open func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	gate := make(chan struct{})
	b.gate = gate
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.gate == gate {
			b.gate = nil
			close(gate)
		}
	}
}

func (b *box) cancelOperation(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.op != nil && b.opName != "kill" {
		b.op(cause)
	}
}

func (b *box) begin(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases++
	b.active = now
}

func (b *box) end(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases--
	b.active = now
}

func (b *box) touch(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active = now
}

func (b *box) setTimeout(seconds int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timeout = time.Duration(seconds) * time.Second
}

// operationWait bounds how long an operation waits for its turn.
const operationWait = 5 * time.Minute

// errBusy is the cause of giving up on the turn.
var errBusy = errors.New("busy")

// Operate runs f as the one state-changing operation on the sandbox, when its
// turn comes. It fails with Conflict when that takes too long. f's context
// ends when the caller's does or when a kill wants the sandbox.
func (s *Service) Operate(ctx context.Context, id, name string, f func(ctx context.Context, op *Operation) error) error {
	b := s.box(id)
	wait, cancelWait := context.WithTimeoutCause(ctx, operationWait, errBusy)
	defer cancelWait()
	if err := b.lock(wait); err != nil {
		if errors.Is(err, errBusy) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return fault.New(fault.Conflict, "sandbox %s is busy with %q", id, b.opName).WithHint("try again when it is done")
		}
		return err
	}
	defer b.unlock()
	opCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.mu.Lock()
	b.op, b.opName = cancel, name
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.op, b.opName = nil, ""
		b.mu.Unlock()
	}()
	err := f(opCtx, &Operation{s: s, b: b})
	if err != nil && opCtx.Err() != nil && ctx.Err() == nil {
		return errors.Join(context.Cause(opCtx), err)
	}
	return err
}
