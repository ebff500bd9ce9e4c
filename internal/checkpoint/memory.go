// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"time"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/store"
)

const (
	// captureOverhead is what a capture takes of memory besides the arena's
	// pages, in bytes: the helper and the engine's object graph.
	captureOverhead = 64 << 20
	// graphGrowth is how much larger the engine's object graph is in memory than
	// in a checkpoint (measured: 100 MB of 28 MB, for 20,000 files).
	graphGrowth = 4
)

// loads is what a generation that is restored from a checkpoint loads into
// memory, in bytes. What it loads of the disk is the disk's.
func loads(img *store.Image) int64 {
	n := img.File(store.FileState).Size() * graphGrowth
	for _, r := range img.Ranges() {
		if r.Source == 0 {
			n += int64(r.Length)
		}
	}
	return n
}

// freeze is the engine's Capture, with the memory for it claimed.
func (s *Service) freeze(ctx context.Context, proc engine.Process, gen meta.Generation) (*engine.Capture, error) {
	budget, claim, err := s.arena(ctx, proc, gen)
	if err != nil {
		return nil, err
	}
	defer claim.Release() // by then the arena has it, or nobody
	return s.cfg.Engine.Capture(ctx, proc, budget)
}

// freezeHeld is the engine's CaptureHeld, with the memory for it claimed.
func (s *Service) freezeHeld(ctx context.Context, proc engine.Process, gen meta.Generation, limit time.Duration) (*engine.Capture, engine.Held, error) {
	budget, claim, err := s.arena(ctx, proc, gen)
	if err != nil {
		return nil, nil, err
	}
	defer claim.Release() // by then the arena has it, or nobody
	return s.cfg.Engine.CaptureHeld(ctx, proc, budget, limit)
}

// arena claims the memory that the arena of a generation's capture takes, and gives the budget of that capture: 0, for one through the disk,
// where the state is larger than the budget or the memory is not there.
func (s *Service) arena(ctx context.Context, proc engine.Process, gen meta.Generation) (budget int64, claim *admission.Claim, err error) {
	mem, dsk := s.cfg.Engine.Usage(proc)
	need := mem + dsk
	if len(gen.Pager) > 0 { // it still loads, and will have all of it
		if from, err := s.cfg.Meta.CheckpointAnyOrg(ctx, gen.Checkpoint); err == nil {
			need = max(need, from.SizeBytes)
		}
	}
	what := "a checkpoint of sandbox " + gen.SandboxID
	if need <= s.cfg.Budget {
		claim, err = s.cfg.Memory.Claim(what, need+captureOverhead)
		if err == nil {
			return s.cfg.Budget, claim, nil
		}
		s.cfg.Log.Warn("capturing through the disk, the pause will be longer", "sandbox", gen.SandboxID, "reason", err)
	}
	free, err := s.cfg.Store.Free()
	if err != nil {
		return 0, nil, err
	}
	if twice := 2*need + spaceMargin; free < twice {
		return 0, nil, fault.New(fault.Unavailable, "no space for %s: it does not fit in memory, and through the disk it takes up to %d MB, of which %d MB are free",
			what, twice>>20, free>>20).WithHint("free some memory or space, for instance by stopping sandboxes or deleting checkpoints, and try again")
	}
	claim, err = s.cfg.Memory.Claim(what, captureOverhead)
	return 0, claim, err
}
