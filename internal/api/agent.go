// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"time"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/sandbox"
)

// changeWait bounds how long it may take, after an agent was lost, until the
// lease says that it was replaced or that its sandbox ended.
const changeWait = 10 * time.Second

// withAgent makes a call of a sandbox's agent. If the sandbox is restored in
// place meanwhile, the call is made again in its new generation: f must be fit
// for that.
func (s *Server) withAgent(ctx context.Context, sandboxID string, f func(context.Context, *sandbox.Lease) error) error {
	for {
		lease, err := s.cfg.Sandboxes.Acquire(ctx, orgOf(ctx), sandboxID)
		if err != nil {
			return err
		}
		bounded, cancel := whileCurrent(ctx, lease)
		err = f(bounded, lease)
		cancel()
		replaced := fault.Is(err, fault.Unavailable) && changed(ctx, lease)
		lease.Release()
		if !replaced {
			return err
		}
	}
}

// whileCurrent gives a context that also ends when the lease's agent stops
// being the sandbox's: it may be paused then, and never answer.
func whileCurrent(ctx context.Context, lease *sandbox.Lease) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-lease.Changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// changed waits, after the agent was lost, for the lease to say why. It tells
// false when it does not in time.
func changed(ctx context.Context, lease *sandbox.Lease) bool {
	t := time.NewTimer(changeWait)
	defer t.Stop()
	select {
	case <-lease.Changed:
		return true
	case <-ctx.Done():
	case <-t.C:
	}
	return false
}
