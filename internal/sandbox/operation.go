// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// operationWait is the default of Config.OperationWait.
const operationWait = 5 * time.Minute

// errBusy is the cause of giving up on the turn.
var errBusy = errors.New("busy")

// opKill names the operation that others make way for.
const opKill = "kill"

// Operate runs f as the one state-changing operation on the sandbox, when its
// turn comes. It fails with Conflict when that takes too long. f's context
// ends when the caller's does or when a kill wants the sandbox.
func (s *Service) Operate(ctx context.Context, id, name string, f func(ctx context.Context, op *Operation) error) error {
	b := s.box(id)
	wait, cancelWait := context.WithTimeoutCause(ctx, s.cfg.OperationWait, errBusy)
	defer cancelWait()
	if err := b.lock(wait); err != nil {
		if errors.Is(err, errBusy) {
			return fault.New(fault.Conflict, "sandbox %s is busy with %q", id, b.operation()).WithHint("try again when it is done")
		}
		return err
	}
	defer b.unlock()
	opCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := b.begin(name, cancel); err != nil {
		return err
	}
	defer b.finish()
	err := f(opCtx, &Operation{s: s, b: b})
	if err != nil && opCtx.Err() != nil && ctx.Err() == nil {
		return errors.Join(context.Cause(opCtx), err)
	}
	return err
}

// Operation is a sandbox during an operation on it: see Service.Operate.
type Operation struct {
	s *Service
	b *box
}

// Run gives the sandbox's present run, or a fault where it has none.
func (op *Operation) Run() (*Run, error) {
	if r, _ := op.b.current(); r != nil {
		return r, nil
	}
	if err := op.b.whyRecovering(); err != nil {
		return nil, err
	}
	return nil, fault.New(fault.Conflict, "sandbox %s is not running", op.b.id)
}

// Stop ends the sandbox for good, with a reason. What an earlier restore replaced,
// and is still to be stored, is stored all the same.
func (op *Operation) Stop(ctx context.Context, reason string) error {
	if err := op.end(ctx, meta.SandboxStopped, reason); err != nil {
		return err
	}
	op.s.forget(op.b.id)
	return nil
}

// kill is Stop because somebody asked for it, which nothing outlives.
func (op *Operation) kill(ctx context.Context) error {
	if err := op.endAll(ctx, meta.SandboxStopped, "user_requested", func(meta.Generation) bool { return true }); err != nil {
		return err
	}
	op.s.forget(op.b.id)
	return nil
}

// end takes the sandbox's run away and records why.
func (op *Operation) end(ctx context.Context, state meta.SandboxState, reason string) error {
	return op.endAll(ctx, state, reason, func(g meta.Generation) bool {
		return g.State != meta.GenerationSaving // what an earlier restore replaced: keepLater's
	})
}

// endAll ends the sandbox, unless it has been stopped, and those of its generations.
// The rows say so first, so that a crash in the middle is finished by reconciliation.
func (op *Operation) endAll(ctx context.Context, state meta.SandboxState, reason string, ends func(meta.Generation) bool) error {
	s := op.s
	ctx = context.WithoutCancel(ctx) // an end that has begun is carried through
	now := s.cfg.Now()
	var gens []meta.Generation
	err := s.cfg.Meta.InTx(ctx, func(tx *meta.DB) error {
		sb, err := tx.SandboxAnyOrg(ctx, op.b.id)
		if err != nil {
			return err
		}
		if gens, err = tx.GenerationsOf(ctx, sb.ID); err != nil {
			return err
		}
		gens = slices.DeleteFunc(gens, func(g meta.Generation) bool { return !ends(g) })
		for i := range gens {
			gens[i].State = meta.GenerationEnding
			if err := tx.UpdateGeneration(ctx, &gens[i]); err != nil {
				return err
			}
		}
		if sb.State == meta.SandboxStopped {
			return nil
		}
		sb.State, sb.Reason, sb.StoppedAt, sb.GenerationID = state, reason, &now, ""
		return tx.UpdateSandbox(ctx, &sb)
	})
	if err != nil {
		return err
	}
	if r := op.b.take(); r != nil {
		r.retire()
	}
	var errs []error
	for _, g := range gens {
		errs = append(errs, s.discard(ctx, g))
	}
	return errors.Join(errs...)
}

// Restored are runs restored from one checkpoint, not yet anybody's.
type Restored struct {
	s         *Service
	restoring engine.Restoring
	claim     *admission.Claim // of memory, until it is loaded
	runs      []*Run
}

// Source says what to restore from.
type Source struct {
	Checkpoint string // id
	Artefact   engine.Source
	Image      Image // the image it rests on
	Memory     int64 // bytes that each restored generation loads
}

// Restore brings up one generation per row from the checkpoint: running,
// greeted and probed, but not yet the sandboxes' own. The rows' shapes are
// used as they are. On an error nothing remains.
func (s *Service) Restore(ctx context.Context, src Source, rows []meta.Sandbox) (_ *Restored, err error) {
	claim, err := s.cfg.Memory.Claim(fmt.Sprintf("%d × checkpoint %s", len(rows), src.Checkpoint), int64(len(rows))*(perStart+src.Memory))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			claim.Release()
		}
	}()
	defer s.pool.hold()()
	var seeds []*seed
	defer func() {
		for _, sd := range seeds {
			sd.close()
			if err != nil {
				err = errors.Join(err, s.discard(ctx, sd.gen))
			}
		}
	}()
	targets := make([]engine.Target, len(rows))
	for i, sb := range rows {
		sd, err := s.seedFor(ctx, sb, src.Image, src.Artefact.Build, src.Checkpoint)
		if err != nil {
			return nil, err
		}
		seeds = append(seeds, sd)
		targets[i] = engine.Target{Spec: sd.spec, Stdin: sd.guest, Prepared: sd.prepared}
	}
	limit := restoreTimeout(len(rows), src.Memory)
	bringUp, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the engine did not come up within %v", limit))
	defer cancel()
	restoring, err := s.cfg.Engine.Restore(bringUp, src.Artefact, targets)
	if err != nil {
		return nil, err
	}
	for _, sd := range seeds {
		sd.started()
	}
	claim.Track(func() int64 { return s.loadedBytes(restoring.Processes(), src.Memory) })
	r := &Restored{s: s, restoring: restoring, claim: claim, runs: make([]*Run, len(rows))}
	if err := r.greet(bringUp, rows, seeds); err != nil {
		restoring.Release()
		for _, run := range r.runs {
			if run != nil {
				run.retire()
			}
		}
		return nil, err
	}
	return r, nil
}

// loadedBytes is how much of the memory that generations load, each so many
// bytes, they have by now.
func (s *Service) loadedBytes(procs []engine.Process, each int64) (sum int64) {
	for _, p := range procs {
		memory, _ := s.cfg.Engine.Usage(p)
		sum += min(memory, each)
	}
	return sum
}

// greet makes runs of the restored seeds, each as soon as it runs: what it touches
// is fetched at once then, and later only now and then. A few are greeted side by
// side: a guest whose pages are still to come takes longer, and more of the
// machine, when all are woken at once.
func (r *Restored) greet(ctx context.Context, rows []meta.Sandbox, seeds []*seed) error {
	procs := r.restoring.Processes()
	pager := r.restoring.Pager().Encode()
	errs := make(chan error, len(rows))
	turns := make(chan struct{}, greetings*runtime.NumCPU())
	for i := range rows {
		go func() {
			if err := r.restoring.Await(ctx, i); err != nil {
				errs <- err
				return
			}
			turns <- struct{}{}
			defer func() { <-turns }()
			run, err := r.s.greet(ctx, rows[i], seeds[i], procs[i])
			if err == nil {
				run.gen.Pager, run.loss, run.loading = pager, func() error { return r.loss(i) }, r.restoring.Loaded()
				r.runs[i] = run
			} else if why := r.loss(i); why != nil {
				err = why // the loss of the pages is the cause of the silence
			}
			errs <- err
		}()
	}
	var all error
	for range rows {
		all = errors.Join(all, <-errs)
	}
	return all
}

// greetings is how many restored runs per CPU are greeted at a time.
const greetings = 4

// lossNews bounds how long the news of a loss may take longer than its effects.
const lossNews = time.Second

// loss is why a run that failed was lost by its pager, if it was.
func (r *Restored) loss(i int) error {
	select {
	case <-r.restoring.Loaded():
	case <-time.After(lossNews):
	}
	return r.restoring.Err(i)
}

// Loaded is closed when every run is fully loaded or lost.
func (r *Restored) Loaded() <-chan struct{} { return r.restoring.Loaded() }

// follow waits for the loading of the runs, which are the sandboxes' own by
// now, and records its end.
func (r *Restored) follow() {
	s := r.s
	r.restoring.Release()
	s.wg.Go(func() {
		defer r.claim.Release()
		select {
		case <-r.restoring.Loaded():
		case <-s.ctx.Done():
			return
		}
		for i, run := range r.runs {
			b := s.box(run.gen.SandboxID)
			if err := r.restoring.Err(i); err != nil {
				s.unloadable(b, run, err)
				continue
			}
			s.loaded(run)
		}
	})
}

// loaded records that a run needs its pager no more.
func (s *Service) loaded(run *Run) {
	err := s.cfg.Meta.InTx(s.ctx, func(tx *meta.DB) error {
		gen, err := tx.Generation(s.ctx, run.gen.ID)
		if err != nil {
			return err
		}
		gen.Pager = nil
		return tx.UpdateGeneration(s.ctx, &gen)
	})
	if err != nil && !fault.Is(err, fault.NotFound) && s.ctx.Err() == nil { // not found: ended meanwhile
		s.cfg.Log.Error("recording a finished load", "generation", run.gen.ID, "error", err)
	}
}

// Enter makes the runs the first of their new sandboxes, whose rows are
// pending. On an error those that did not enter are gone; entered are the
// others.
func (r *Restored) Enter(ctx context.Context, rows []meta.Sandbox) (entered []meta.Sandbox, err error) {
	for i := range rows {
		if e := r.s.enter(ctx, &rows[i], r.runs[i]); e != nil {
			err = errors.Join(err, e)
			continue
		}
		entered = append(entered, rows[i])
	}
	r.follow()
	return entered, err
}

// Discard removes runs that shall not become anybody's.
func (r *Restored) Discard(ctx context.Context) error {
	defer r.claim.Release()
	r.restoring.Release()
	var errs []error
	for _, run := range r.runs {
		run.retire()
		errs = append(errs, r.s.discard(ctx, run.gen))
	}
	return errors.Join(errs...)
}

// restoreTimeout bounds the bringing up of so many restored generations, each with
// so many bytes of memory, until the last is greeted. Pages come as they are wanted;
// what the engine itself has to build up again, each file and process, comes first,
// and generations take turns.
func restoreTimeout(count int, memory int64) time.Duration {
	const least, perTarget, perStep, step = 3 * time.Minute, time.Second, time.Second, 16 << 20
	return least + time.Duration(count)*perTarget + time.Duration(memory/step)*perStep
}
