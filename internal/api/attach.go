// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/sandbox"
)

// speaker is one dialect of a session socket.
type speaker interface {
	sink
	// hear passes on what the client sent.
	hear(ctx context.Context, m message) error
	// lost tells the person at the client why the session cannot be followed.
	lost(reason string)
}

// attachment joins a socket and a session.
type attachment struct {
	s                    *Server
	so                   *socket
	sandboxID, sessionID string
	stdin                *stdin
	frame                []byte // reused
}

// attachExec serves an exec socket.
func (s *Server) attachExec(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	from := agentclient.From{Place: wire.FromScrollback}
	if v := q.Get("from"); v != "" {
		off, err := number("from", v, 0)
		if err != nil {
			s.writeError(w, r, err)
			return
		}
		from = agentclient.From{Place: wire.FromOffset, Offset: off, Timeline: q.Get("timeline")}
	}
	positions := q.Get("offsets") == "1"
	s.serveSession(w, r, from, func(a *attachment) speaker { return &execSpeaker{attachment: a, positions: positions} })
}

// serveSession attaches to a session and joins it to a socket. What is wrong
// before the handshake is a plain answer.
func (s *Server) serveSession(w http.ResponseWriter, r *http.Request, from agentclient.From, dialect func(*attachment) speaker) {
	if err := checkUpgrade(r); err != nil {
		s.writeError(w, r, err)
		return
	}
	a := &attachment{s: s, sandboxID: r.PathValue("id"), sessionID: r.PathValue("session")}
	f := &follower{s: s, orgID: orgOf(r.Context()), sandboxID: a.sandboxID, sessionID: a.sessionID, from: from}
	if err := f.open(r.Context()); err != nil {
		s.writeError(w, r, err)
		return
	}
	defer f.close()
	so, err := s.accept(w, r)
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	a.so = so
	var release func()
	a.stdin, release = s.stdins.use(a.sandboxID, a.sessionID)
	defer release()

	sp := dialect(a)
	so.wg.Go(func() { a.listen(sp, so.receive()) })
	err = f.run(so.serving, sp)
	if errors.Is(err, errSessionLost) || fault.Is(err, fault.Gone) {
		sp.lost(fault.As(err).Message)
	}
	so.close(so.closing(err))
}

// listen passes on what the client sends. What fails is lost: the sandbox's
// state, which is why, reaches the client by the output.
func (a *attachment) listen(sp speaker, messages <-chan message) {
	for m := range messages {
		if err := sp.hear(a.so.serving, m); err != nil && a.so.serving.Err() == nil {
			a.s.log.DebugContext(a.so.ctx, "input was not taken", "sandbox", a.sandboxID, "session", a.sessionID, "err", err)
		}
	}
}

// write sends a frame: a leading byte and p.
func (a *attachment) write(kind byte, p []byte) error {
	a.frame = append(append(a.frame[:0], kind), p...)
	return a.so.write(a.frame)
}

// input gives the process bytes behind those before.
func (a *attachment) input(ctx context.Context, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	return a.s.withAgent(ctx, a.sandboxID, func(ctx context.Context, lease *sandbox.Lease) error {
		_, err := a.stdin.append(ctx, lease, a.sessionID, p)
		return err
	})
}

// execSpeaker speaks the framing of exec sockets.
type execSpeaker struct {
	*attachment
	positions bool // the client asked for them

	mu            sync.Mutex // guards the rest, and the order of positions and acknowledgements
	timeline      string     // of the last position
	taken         int64      // input that was taken last,
	takenTimeline string     // and in which timeline
}

// position tells the client where the output goes on, and how much input was
// taken up to now: more, perhaps, than when the session was attached to.
func (e *execSpeaker) position(p client.Position, _ int64) error {
	if !e.positions {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timeline = p.Timeline
	if e.takenTimeline == p.Timeline {
		p.Stdin = max(p.Stdin, e.taken)
	}
	return e.so.write(client.PositionFrame(p))
}

// acknowledge tells the client how much input was taken. In another timeline
// than the client knows it means nothing to it: the next position tells.
func (e *execSpeaker) acknowledge(timeline string, taken int64) error {
	if !e.positions {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.taken, e.takenTimeline = taken, timeline
	if timeline != e.timeline {
		return nil
	}
	return e.so.write(client.StdinAckFrame(taken))
}

func (e *execSpeaker) output(stream wire.Stream, p []byte) error {
	kind := client.FrameStdout
	if stream == wire.Stderr {
		kind = client.FrameStderr
	}
	return e.write(kind, p)
}

func (e *execSpeaker) scrollback() error { return e.write(client.FrameScrollback, nil) }

func (e *execSpeaker) exited(x wire.Exit) error {
	return e.so.write(client.ExitFrame(x.Code, x.TimedOut))
}

func (e *execSpeaker) lost(reason string) {
	_ = e.write(client.FrameStderr, []byte("oc: "+reason+"\n")) // the socket closes anyway
}

func (e *execSpeaker) hear(ctx context.Context, m message) error {
	if !m.binary || len(m.data) == 0 {
		return nil
	}
	switch m.data[0] {
	case client.FrameStdin:
		return e.input(ctx, m.data[1:])
	case client.FrameStdinAt:
		return e.inputAt(ctx, m.data)
	case client.FrameCloseStdin:
		return e.s.withAgent(ctx, e.sandboxID, func(ctx context.Context, lease *sandbox.Lease) error {
			return lease.Agent.CloseStdin(ctx, e.sessionID)
		})
	}
	return nil // of a newer client
}

// inputAt gives the process input at an offset and says how much it has taken.
// Input beyond that, or that cannot be taken any more, is answered in the same
// way: the client sees where it is.
func (e *execSpeaker) inputAt(ctx context.Context, msg []byte) error {
	off, p, err := client.ParseStdinAt(msg)
	if err != nil {
		return err
	}
	var taken int64
	var timeline string
	err = e.s.withAgent(ctx, e.sandboxID, func(ctx context.Context, lease *sandbox.Lease) (err error) {
		timeline = lease.Timeline
		taken, err = e.stdin.writeAt(ctx, lease, e.sessionID, off, p)
		if fault.Is(err, fault.Invalid) {
			info, serr := lease.Agent.Session(ctx, e.sessionID)
			taken, err = info.StdinOffset, serr
		}
		return err
	})
	switch {
	case fault.Is(err, fault.Conflict): // nobody reads it; as far as the client goes, it is gone
		taken = off + int64(len(p))
	case err != nil:
		return err
	}
	return e.acknowledge(timeline, taken)
}
