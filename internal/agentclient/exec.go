// SPDX-License-Identifier: Apache-2.0

package agentclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"math"
	"strings"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/fault"
)

// Types of the protocol that callers see; package wire documents them.
type (
	// StartRequest says what session to start.
	StartRequest = wire.StartRequest
	// SessionInfo describes a session.
	SessionInfo = wire.SessionInfo
	// Exit says how a session's process ended.
	Exit = wire.Exit
	// Size is that of a terminal.
	Size = wire.Size
	// Stream tells stdout and stderr apart.
	Stream = wire.Stream
	// FileInfo describes a file.
	FileInfo = wire.FileInfo
	// Identity is what distinguishes a sandbox from the one it was copied from.
	Identity = wire.Identity
)

// The streams of output.
const (
	Stdout = wire.Stdout
	Stderr = wire.Stderr
)

// From says where an attach begins.
type From struct {
	Place wire.From // wire.FromScrollback (also ""), FromTimeline, FromOffset, FromEnd

	// Offset and, if it is known, the Timeline it was counted in, for FromOffset.
	Offset   int64
	Timeline string
}

// Start starts a session. Without a Key it is given a fresh one; with one, a
// repeated call gives the session of the first.
func (c *Client) Start(ctx context.Context, req StartRequest) (SessionInfo, error) {
	if req.Key == "" {
		req.Key = rand.Text()
	}
	var s SessionInfo
	if err := c.prompt(ctx, wire.OpExecStart, req, &s); err != nil {
		return SessionInfo{}, err
	}
	return s, checkSession(&s)
}

// Sessions lists all sessions that the agent knows, oldest first.
func (c *Client) Sessions(ctx context.Context) ([]SessionInfo, error) {
	return rows(ctx, c, wire.OpExecList, struct{}{}, checkSession)
}

// Session describes one session.
func (c *Client) Session(ctx context.Context, id string) (SessionInfo, error) {
	var s SessionInfo
	if err := c.prompt(ctx, wire.OpExecInfo, wire.SessionArgs{Session: id}, &s); err != nil {
		return SessionInfo{}, err
	}
	return s, checkSession(&s)
}

// WriteStdin gives the session's process the bytes p, whose first is at offset
// off of all its input, and waits until it has room for them. Bytes that it was
// given before are not given again, so that a call may be repeated. newOff is
// how much input has been taken in all; after an error, Session tells.
func (c *Client) WriteStdin(ctx context.Context, id string, off int64, p []byte) (newOff int64, err error) {
	k, err := c.begin(ctx, wire.OpExecStdin, 0, wire.SessionArgs{Session: id})
	if err != nil {
		return off, err
	}
	if err := k.upload(ctx, off, bytes.NewReader(p)); err != nil {
		c.giveUp(k)
		return off, err
	}
	var res wire.StdinResult
	if err := k.finished(ctx, &res); err != nil {
		return off, err
	}
	return res.Offset, nil
}

// CloseStdin ends the input of the session's process, after all that was
// written. On a terminal it types the end-of-file character.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	return c.prompt(ctx, wire.OpExecClose, wire.SessionArgs{Session: id}, nil)
}

// Signal sends a signal to the session's process group. If the process has
// ended it gives a Conflict.
func (c *Client) Signal(ctx context.Context, id string, signal int) error {
	return c.prompt(ctx, wire.OpExecSignal, wire.SignalArgs{Session: id, Signal: signal}, nil)
}

// Resize changes the size of the session's terminal.
func (c *Client) Resize(ctx context.Context, id string, size Size) error {
	return c.prompt(ctx, wire.OpExecResize, wire.ResizeArgs{Session: id, Size: size}, nil)
}

// Event is one thing that happens in a session's output.
type Event struct {
	Kind   EventKind
	Stream Stream // of EventOutput
	Offset int64  // of the first byte; of the place for EventReplayEnd
	Data   []byte // of EventOutput; the caller's to keep
	Exit   *Exit  // of EventExit
}

// EventKind says what an Event is.
type EventKind int

// The kinds of events.
const (
	EventOutput    EventKind = iota + 1
	EventReplayEnd           // what was there at the attach has come; exactly once
	EventExit                // the process has ended and all output has come; the last
)

// Output is an attached reader of a session's output. One goroutine at a time
// may use it. Unread output holds the session's process up, until the agent
// cuts a reader that takes nothing for 30 seconds.
type Output struct {
	Session SessionInfo // as it was at the attach
	From    int64       // offset of the first byte that will come
	Missing int64       // bytes before From that were asked for and are no longer kept

	k      *call
	pos    int64
	exited bool
}

// Attach begins to read a session's output. The Output must be closed.
func (c *Client) Attach(ctx context.Context, id string, from From) (*Output, error) {
	return c.output(ctx, wire.OpExecAttach, wire.AttachArgs{
		Session: id, From: from.Place, Offset: from.Offset, Timeline: from.Timeline,
	})
}

// Run is Start, CloseStdin and Attach from the beginning, in one round trip where
// the agent knows how. The request's Key makes a repeated call give the session
// of the first.
func (c *Client) Run(ctx context.Context, req StartRequest) (*Output, error) {
	if req.Key == "" {
		req.Key = rand.Text()
	}
	const since = 2 // version of the protocol
	if c.version.Load() >= since {
		return c.output(ctx, wire.OpExecRun, req)
	}
	s, err := c.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := c.CloseStdin(ctx, s.ID); err != nil {
		return nil, err
	}
	return c.Attach(ctx, s.ID, From{Place: wire.FromScrollback})
}

// output begins a call that reads a session's output.
func (c *Client) output(ctx context.Context, op wire.Op, args any) (*Output, error) {
	k, err := c.begin(ctx, op, wire.Output, args)
	if err != nil {
		return nil, err
	}
	var acc wire.AttachAccept
	prompt, cancel := context.WithTimeout(ctx, promptTime)
	defer cancel()
	if err := k.accept(prompt, &acc); err != nil {
		return nil, err
	}
	if err := checkSession(&acc.Session); err != nil || acc.From < 0 || acc.Missing < 0 {
		c.giveUp(k)
		return nil, k.broken("what it says about the session makes no sense")
	}
	return &Output{Session: acc.Session, From: acc.From, Missing: acc.Missing, k: k, pos: acc.From}, nil
}

// Next waits for the next event. After EventExit it gives io.EOF. If ctx ends,
// nothing is lost: Next may be called again.
func (o *Output) Next(ctx context.Context) (Event, error) {
	if o.exited {
		return Event{}, io.EOF
	}
	it, err := o.k.next(ctx)
	if errors.Is(err, io.EOF) {
		var exit *Exit
		if err := o.k.finished(ctx, &exit); err != nil {
			return Event{}, err
		}
		if exit == nil {
			return Event{}, o.k.broken("the output ended before the process")
		}
		o.exited = true
		return Event{Kind: EventExit, Offset: o.pos, Exit: exit}, nil
	}
	if err != nil {
		return Event{}, err
	}
	if it.off != o.pos || o.pos > math.MaxInt64-wire.MaxChunk {
		o.Close()
		return Event{}, o.k.broken("its output is not in order")
	}
	if len(it.b) == 0 {
		return Event{Kind: EventReplayEnd, Offset: o.pos}, nil
	}
	o.pos += int64(len(it.b))
	return Event{Kind: EventOutput, Stream: it.stream, Offset: it.off, Data: it.b}, nil
}

// Close detaches. The session goes on.
func (o *Output) Close() error {
	o.k.c.giveUp(o.k)
	return nil
}

// checkSession refuses a description that could do harm further up.
func checkSession(s *SessionInfo) error {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
	if s.ID == "" || len(s.ID) > 64 || strings.Trim(s.ID, letters) != "" || s.OutputEnd < 0 || s.StdinOffset < 0 {
		return fault.New(fault.Internal, "the sandbox's agent described a session that makes no sense")
	}
	return nil
}
