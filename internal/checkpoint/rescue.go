// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

// rescue saves a sandbox whose engine runs but whose agent cannot be reached,
// because everybody who held its channel died: the engine is captured without
// the agent's help, and restored into a generation with a fresh channel. The
// checkpoint stays, named "recovered-…", as one of the newest of them.
func (s *Service) rescue(ctx context.Context, op *sandbox.Operation, sb meta.Sandbox, gen meta.Generation) error {
	proc, err := engine.DecodeProcess(gen.Process)
	if err != nil {
		return err
	}
	c := meta.Checkpoint{OrgID: sb.OrgID, SandboxID: sb.ID, Name: automaticName(recoveredPrefix), Kind: kindFull, Automatic: true, Unverified: true, ParentID: sb.LastCheckpoint}
	if err := s.insert(ctx, &c, sb, 0); err != nil {
		return err
	}
	defer func() { s.trimRecovered(ctx, c) }()
	if err := s.captureLost(ctx, proc, gen, &c); err != nil {
		s.fail(ctx, &c, err)
		return err
	}
	_, src, release, err := s.openToRestore(ctx, c, nil)
	if err != nil {
		return err
	}
	defer release()
	restored, err := s.cfg.Sandboxes.Restore(ctx, src, []meta.Sandbox{sb})
	if err != nil {
		return err
	}
	return op.Replace(ctx, restored, func(row *meta.Sandbox) { row.LastCheckpoint = c.ID }, nil)
}

// captureLost captures a generation without its agent and stores that. What keeps a
// store from taking it is no fault of the sandbox's, and may pass.
func (s *Service) captureLost(ctx context.Context, proc engine.Process, gen meta.Generation, c *meta.Checkpoint) error {
	s.hurry(gen)
	p := s.openParent(ctx, c.ParentID)
	defer p.close()
	capt, err := s.freeze(ctx, proc, gen, p, nil)
	if err != nil {
		return err
	}
	defer capt.close()
	if err := s.keep(ctx, capt, c, true); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the state of sandbox %s cannot be stored: %s", c.SandboxID, reason(err))
	}
	return nil
}
