// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"sync"

	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/sandbox"
)

// stdinTable keeps the ways into the sessions that clients write to, one for
// each session: the agent takes input by offset, so two clients that type into
// one session must agree on where they are.
type stdinTable struct {
	mu sync.Mutex
	m  map[string]*stdin
}

// stdin is the way into one session.
type stdin struct {
	refs int // guarded by the table's mutex

	turn  chan struct{}       // holds one token: whoever took it may write
	agent *agentclient.Client // whose count off is; nil = to be asked
	off   int64
}

// use gives the way into a session, until done is called.
func (t *stdinTable) use(sandboxID, sessionID string) (in *stdin, done func()) {
	key := sandboxID + "/" + sessionID
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[string]*stdin{}
	}
	in = t.m[key]
	if in == nil {
		in = &stdin{turn: make(chan struct{}, 1)}
		in.turn <- struct{}{}
		t.m[key] = in
	}
	in.refs++
	return in, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if in.refs--; in.refs == 0 {
			delete(t.m, key)
		}
	}
}

// append writes p behind what the session was given before.
func (in *stdin) append(ctx context.Context, lease *sandbox.Lease, sessionID string, p []byte) (int64, error) {
	return in.locked(ctx, func() (int64, error) {
		if in.agent != lease.Agent {
			info, err := lease.Agent.Session(ctx, sessionID)
			if err != nil {
				return 0, err
			}
			in.agent, in.off = lease.Agent, info.StdinOffset
		}
		return in.write(ctx, lease, sessionID, in.off, p)
	})
}

// writeAt writes p, whose first byte is at offset off of all the session's
// input. What it has already is not given to it again.
func (in *stdin) writeAt(ctx context.Context, lease *sandbox.Lease, sessionID string, off int64, p []byte) (int64, error) {
	return in.locked(ctx, func() (int64, error) { return in.write(ctx, lease, sessionID, off, p) })
}

// locked runs f in turn.
func (in *stdin) locked(ctx context.Context, f func() (int64, error)) (int64, error) {
	select {
	case <-in.turn:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { in.turn <- struct{}{} }()
	return f()
}

// write writes; the caller has the turn.
func (in *stdin) write(ctx context.Context, lease *sandbox.Lease, sessionID string, off int64, p []byte) (int64, error) {
	end, err := lease.Agent.WriteStdin(ctx, sessionID, off, p)
	if err != nil {
		in.agent = nil // how much of it was taken is not known
		return 0, err
	}
	in.agent, in.off = lease.Agent, end
	return end, nil
}
