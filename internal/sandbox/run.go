// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/killpoint"
	"github.com/opencomputer/oc/internal/meta"
)

// Run is a generation that runs and whose agent answers.
type Run struct {
	gen     meta.Generation
	proc    engine.Process
	agent   *agentclient.Client
	changed chan struct{} // closed when it stops being, or is not to become, the sandbox
	once    sync.Once
	loss    func() error    // why it was lost by its pager, if it was; nil: it has none
	loading <-chan struct{} // closed when its pager is not needed any more; nil: it has none
}

// Agent speaks to the run's agent.
func (r *Run) Agent() *agentclient.Client { return r.agent }

// Process is the engine's record of the run.
func (r *Run) Process() engine.Process { return r.proc }

// Generation is the run's row as it was when it started.
func (r *Run) Generation() meta.Generation { return r.gen }

// retire tells the users of the run that it is not the sandbox any more, and
// closes this server's end of its channel.
func (r *Run) retire() {
	r.once.Do(func() {
		close(r.changed)
		_ = r.agent.Close() // our copy of the socket
	})
}

func (r *Run) retired() bool {
	select {
	case <-r.changed:
		return true
	default:
		return false
	}
}

// seed is a generation that has its row, its channel and its keeper entry but
// nothing runs in it yet.
type seed struct {
	gen      meta.Generation
	spec     engine.Spec
	host     *os.File
	guest    *os.File
	prepared engine.Process // its engine process, of the pool; the zero value: none yet
	born     time.Time      // when a pool member was prepared
}

// started gives up the guest's end of the channel, which its engine has by now:
// the end of the engine shall be the end of the channel.
func (sd *seed) started() { _ = sd.guest.Close() }

func (sd *seed) close() {
	_ = sd.host.Close() // the keeper and the agent client have their own copies
	_ = sd.guest.Close()
}

// seedFor gives a seed for a sandbox: a member of the pool whose engine process
// is prepared, or a new one. checkpoint is what it will be restored from, ""
// for a fresh start; build is what it must run from.
func (s *Service) seedFor(ctx context.Context, sb meta.Sandbox, img Image, build, checkpoint string) (*seed, error) {
	sd, err := s.takePooled(ctx, sb, img, build, checkpoint)
	if sd != nil || err != nil {
		return sd, err
	}
	return s.sowFor(ctx, sb, img, checkpoint)
}

// sowFor makes a new seed for a sandbox.
func (s *Service) sowFor(ctx context.Context, sb meta.Sandbox, img Image, checkpoint string) (*seed, error) {
	return s.sow(ctx, meta.Generation{
		SandboxID: sb.ID, State: meta.GenerationStarting, ImageHash: img.Hash, Checkpoint: checkpoint,
		Timeline: meta.NewID("tl"), CPUs: sb.CPUs, MemoryMB: sb.MemoryMB, DiskMB: sb.DiskMB,
	}, engine.Spec{ImagePath: img.Path, Hostname: sb.ID, Shape: s.cfg.Limits.shape(sb)})
}

// takePooled makes a member of the pool the sandbox's; nil where there is none.
func (s *Service) takePooled(ctx context.Context, sb meta.Sandbox, img Image, build, checkpoint string) (*seed, error) {
	sd := s.pool.take(poolKey{build: build, image: img.Hash, shape: s.cfg.Limits.shape(sb), agent: checkpoint == ""}, img)
	if sd == nil {
		return nil, nil
	}
	sd.gen.SandboxID, sd.gen.Checkpoint = sb.ID, checkpoint
	if err := s.cfg.Meta.UpdateGeneration(ctx, &sd.gen); err != nil {
		sd.close()
		return nil, errors.Join(err, s.discard(ctx, sd.gen))
	}
	return sd, nil
}

// sow makes a seed: a row, a channel, and the keeper's copy of its host end.
func (s *Service) sow(ctx context.Context, gen meta.Generation, spec engine.Spec) (_ *seed, err error) {
	if err := s.cfg.Meta.InsertGeneration(ctx, &gen); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard(ctx, gen))
		}
	}()
	host, guest, err := agentclient.Pair()
	if err != nil {
		return nil, fmt.Errorf("sandbox: making the agent's channel: %w", err)
	}
	spec.Generation = gen.ID
	sd := &seed{gen: gen, host: host, guest: guest, spec: spec}
	if err := s.cfg.Keeper.Put(ctx, gen.ID, sd.host); err != nil {
		sd.close()
		return nil, fmt.Errorf("sandbox: handing the channel to the keeper: %w", err)
	}
	killpoint.Here(killpoint.CreateChannel)
	return sd, nil
}

// discard removes everything of a generation, its row last. It is what makes
// every failure and every end leave nothing behind, so it goes on when ctx is
// over.
func (s *Service) discard(ctx context.Context, gen meta.Generation) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	err := s.cfg.Engine.DestroyGeneration(ctx, gen.ID)
	if err == nil {
		err = s.cfg.Keeper.Drop(ctx, gen.ID)
	}
	if err == nil {
		return s.cfg.Meta.DeleteGeneration(ctx, gen.ID)
	}
	if gen.State != meta.GenerationEnding { // reconciliation tries again
		gen.State = meta.GenerationEnding
		err = errors.Join(err, s.cfg.Meta.UpdateGeneration(ctx, &gen))
	}
	return err
}

const discardTimeout = time.Minute

// greet makes a run of a seed whose process runs: handshake, identity, probe.
// Nothing outside sees a generation before that is done.
func (s *Service) greet(ctx context.Context, sb meta.Sandbox, sd *seed, proc engine.Process) (_ *Run, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, greetTimeout, fmt.Errorf("the agent did not answer within %v", greetTimeout))
	defer cancel()
	agent, err := agentclient.New(sd.host, s.cfg.Log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = agent.Close()
		}
	}()
	if _, err := agent.Hello(ctx, agentclient.HelloRequest{Generation: sd.gen.ID, Timeline: sd.gen.Timeline}); err != nil {
		return nil, fmt.Errorf("sandbox: the agent's handshake: %w", err)
	}
	probe := make(chan error, 1)
	go func() {
		if sd.gen.Checkpoint == "" {
			probe <- nil // its handshake is the first thing that it ever did
			return
		}
		probe <- agent.Probe(ctx)
	}()
	err = agent.SetIdentity(ctx, newIdentity(sb.ID, sd.gen.ID))
	if err != nil {
		err = fmt.Errorf("sandbox: giving the guest its identity: %w", err)
	}
	if e := <-probe; e != nil {
		err = errors.Join(err, fmt.Errorf("sandbox: probing the guest: %w", e))
	}
	if err != nil {
		return nil, err
	}
	gen := sd.gen
	gen.Process, gen.Build = proc.Encode(), proc.Build
	return &Run{gen: gen, proc: proc, agent: agent, changed: make(chan struct{})}, nil
}

// greetTimeout bounds handshake, identity and probe together. Loading serves
// what they touch first, so it does not grow with the size of a checkpoint.
const greetTimeout = 60 * time.Second

func newIdentity(hostname, generation string) agentclient.Identity {
	id, entropy := make([]byte, 16), make([]byte, 64)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	_, _ = rand.Read(entropy)
	return agentclient.Identity{
		Hostname: hostname, MachineID: hex.EncodeToString(id), Entropy: entropy, Generation: generation,
	}
}

// watch turns the death of a run that nobody asked for into the sandbox's
// state.
func (s *Service) watch(b *box, r *Run) {
	exited, err := s.cfg.Engine.Exited(s.ctx, r.proc)
	if err != nil {
		s.cfg.Log.Error("cannot watch an engine", "generation", r.gen.ID, "error", err)
		return
	}
	s.wg.Go(func() {
		select {
		case <-exited:
			s.ended(b, r)
		case <-r.changed:
		case <-s.ctx.Done():
		}
	})
}

// ended ends a sandbox whose engine ended unexpectedly. Who serves its pages ends
// it with a reason, which may be heard later than the end.
func (s *Service) ended(b *box, r *Run) {
	if r.loss != nil {
		if err := r.loss(); err != nil {
			s.unloadable(b, r, err)
			return
		}
	}
	s.lost(b, r, "its engine process ended unexpectedly")
}

// unloadable ends a sandbox whose pager could not load all of it.
func (s *Service) unloadable(b *box, r *Run, why error) {
	if s.cfg.Lost != nil {
		s.cfg.Lost(s.ctx, r.gen.Checkpoint, why)
	}
	s.lost(b, r, why.Error())
}

// lost ends a sandbox whose run cannot go on.
func (s *Service) lost(b *box, r *Run, reason string) {
	if r.retired() {
		return
	}
	s.cfg.Log.Error("sandbox lost", "sandbox", b.id, "generation", r.gen.ID, "reason", reason,
		"engine", s.cfg.Engine.LastWords(r.proc))
	err := s.Operate(s.ctx, b.id, "end", func(ctx context.Context, op *Operation) error {
		if now, _ := b.current(); now != r {
			return nil // replaced meanwhile
		}
		return op.end(ctx, meta.SandboxError, reason)
	})
	if err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Error("ending a lost sandbox", "sandbox", b.id, "error", err)
	}
}
