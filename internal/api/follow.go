// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/sandbox"
)

// errSessionLost says that an in-place restore went to a checkpoint that does
// not know the session.
var errSessionLost = fault.New(fault.Gone, "session ended: the sandbox was restored to a checkpoint that does not know it")

// sink takes what a follower follows. An error ends the following.
type sink interface {
	// position says where the next output is, whenever that is not just behind
	// the last one, and how many bytes before it are gone for good.
	position(p client.Position, missing int64) error
	output(stream wire.Stream, p []byte) error
	// scrollback says that all that was there at the attach has been given. It
	// comes once.
	scrollback() error
	exited(e wire.Exit) error
}

// follower follows a session's output, over in-place restores of its sandbox.
// One goroutine uses it.
type follower struct {
	s                           *Server
	orgID, sandboxID, sessionID string
	from                        agentclient.From // where to begin
	known                       bool             // the session did exist
	start                       *starter         // instead of sessionID: it is yet to be started

	lease    *sandbox.Lease
	out      *agentclient.Output
	pos      client.Position // of the next output byte; no timeline before the first attach
	replayed bool            // the scrollback's end was told
}

// open acquires the sandbox and attaches: where the last attachment ended, if
// there was one.
func (f *follower) open(ctx context.Context) error {
	from, known := f.from, f.known
	if f.pos.Timeline != "" {
		known = true
		from = agentclient.From{Place: wire.FromOffset, Offset: f.pos.Offset, Timeline: f.pos.Timeline}
	}
	for {
		lease, err := f.s.cfg.Sandboxes.Acquire(ctx, f.orgID, f.sandboxID)
		if err != nil {
			return err
		}
		bounded, cancel := whileCurrent(ctx, lease)
		var out *agentclient.Output
		if f.sessionID == "" {
			out, err = f.start.run(bounded, lease)
		} else {
			out, err = lease.Agent.Attach(bounded, f.sessionID, from)
		}
		cancel()
		if err == nil {
			f.lease, f.out, f.sessionID = lease, out, out.Session.ID
			return nil
		}
		replaced := fault.Is(err, fault.Unavailable) && changed(ctx, lease)
		lease.Release()
		switch {
		case replaced:
			known = true // or the first agent would have said that it is not
		case fault.Is(err, fault.NotFound) && known:
			return errSessionLost
		default:
			return err
		}
	}
}

// starter says what session to start, without input.
type starter struct {
	req  wire.StartRequest
	envs map[string]string // over the sandbox's
}

func (r *starter) run(ctx context.Context, lease *sandbox.Lease) (*agentclient.Output, error) {
	req := r.req
	req.Env = environment(lease.Sandbox.Envs, r.envs)
	return lease.Agent.Run(ctx, req)
}

// close detaches.
func (f *follower) close() {
	if f.lease != nil {
		_ = f.out.Close()
		f.lease.Release()
		f.lease, f.out = nil, nil
	}
}

// run feeds dst until the session has exited, which is nil. It gives
// errSessionLost if a restore ended the session, the fault of Acquire if the
// sandbox is no more, and dst's error. Open comes before, close after it.
func (f *follower) run(ctx context.Context, dst sink) error {
	for {
		err := f.pump(ctx, dst)
		if ctx.Err() != nil || !fault.Is(err, fault.Unavailable) || !changed(ctx, f.lease) {
			return err
		}
		f.close()
		if err := f.open(ctx); err != nil {
			return err
		}
	}
}

// pump feeds dst from the present attachment. Unavailable says that the agent
// was lost.
func (f *follower) pump(ctx context.Context, dst sink) error {
	ctx, cancel := whileCurrent(ctx, f.lease)
	defer cancel()
	if err := f.moved(dst); err != nil {
		return err
	}
	for {
		ev, err := f.out.Next(ctx)
		if err != nil {
			return err
		}
		switch ev.Kind {
		case agentclient.EventOutput:
			if err := dst.output(ev.Stream, ev.Data); err != nil {
				return err
			}
			f.pos.Offset += int64(len(ev.Data))
		case agentclient.EventReplayEnd:
			if f.replayed {
				continue
			}
			f.replayed = true
			if err := dst.scrollback(); err != nil {
				return err
			}
		case agentclient.EventExit:
			return dst.exited(*ev.Exit)
		}
	}
}

// moved tells dst where the attachment begins, unless that is where the last one
// ended.
func (f *follower) moved(dst sink) error {
	begin := client.Position{Timeline: f.out.Session.Timeline, Offset: f.out.From, Stdin: f.out.Session.StdinOffset}
	contiguous := begin.Timeline == f.pos.Timeline && begin.Offset == f.pos.Offset
	f.pos = begin
	if contiguous {
		return nil
	}
	return dst.position(begin, f.out.Missing)
}
