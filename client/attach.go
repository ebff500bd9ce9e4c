// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/coder/websocket"
)

// maxMessage bounds a message on a socket, either way.
const maxMessage = 1 << 20

// stdinChunk is how much input travels in one message.
const stdinChunk = 32 << 10

// EventKind says what an Event of a session is.
type EventKind int

// The kinds of events.
const (
	EventStdout     EventKind = iota + 1 // Data was written to stdout
	EventStderr                          // Data was written to stderr
	EventScrollback                      // what was there before the attach has been given
	EventExit                            // the process ended with ExitCode; nothing follows
	EventPosition                        // the next output byte is at Position, and so much input was taken
	EventStdinAck                        // Position.Stdin bytes of input have been taken
)

// Event is what an ExecStream gives. Data is valid until the next one.
type Event struct {
	Kind     EventKind
	Data     []byte
	ExitCode int
	TimedOut bool // the process was killed because its timeout passed
	Position Position
}

// ExecStream is an attachment to a session. Next must be called by one goroutine
// at a time, and must be called for the attachment to stay alive; the other
// methods are safe beside it.
type ExecStream struct {
	conn *websocket.Conn
	pos  Position
}

// AttachExec attaches to a session. With a nil from it gives the scrollback and
// goes on live; with a position it goes on from just there, so that an
// attachment that broke can be continued without a lost or doubled byte.
//
// If the position is of an older timeline (the sandbox was restored meanwhile)
// the output goes on at the start of the present one.
func (c *Client) AttachExec(ctx context.Context, sandboxID, sessionID string, from *Position) (*ExecStream, error) {
	q := url.Values{"offsets": {"1"}}
	s := &ExecStream{}
	if from != nil {
		q.Set("from", strconv.FormatInt(from.Offset, 10))
		q.Set("timeline", from.Timeline)
		s.pos = *from
	}
	conn, err := c.dial(ctx, path("sandboxes", sandboxID, "exec", sessionID)+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	s.conn = conn
	return s, nil
}

// dial opens a socket.
func (c *Client) dial(ctx context.Context, p string) (*websocket.Conn, error) {
	h := http.Header{}
	if c.key != "" {
		h.Set("X-API-Key", c.key)
	}
	conn, resp, err := websocket.Dial(ctx, c.base+p, &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: h})
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 {
			// The handshake's body is cut at 1 KiB by the library: errors fit.
			return nil, errorFrom(resp)
		}
		return nil, fmt.Errorf("cannot reach %s: %w", strings.TrimSuffix(c.base, "/api"), err)
	}
	conn.SetReadLimit(maxMessage)
	return conn, nil
}

// Next gives the next event. It gives io.EOF after the EventExit, an *Error when
// the server says why the session cannot be followed any more, and any other
// error when the connection broke or the server asked to come again: attach
// anew from Position.
func (s *ExecStream) Next(ctx context.Context) (Event, error) {
	typ, msg, err := s.conn.Read(ctx)
	if err != nil {
		return Event{}, closeError(err)
	}
	if typ != websocket.MessageBinary {
		return Event{}, errFrame
	}
	ev, err := decodeFrame(msg)
	switch ev.Kind {
	case EventStdout, EventStderr:
		s.pos.Offset += int64(len(ev.Data))
	case EventPosition:
		s.pos = ev.Position
	case EventStdinAck:
		s.pos.Stdin = ev.Position.Stdin
	}
	return ev, err
}

// Position is the place just behind what Next has given. It belongs to the
// goroutine that calls Next.
func (s *ExecStream) Position() Position { return s.pos }

// WriteStdin sends input to the process. It blocks while the process takes none.
func (s *ExecStream) WriteStdin(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), stdinChunk)
		if err := s.conn.Write(ctx, websocket.MessageBinary, append([]byte{FrameStdin}, p[:n]...)); err != nil {
			return fmt.Errorf("send input: %w", err)
		}
		p = p[n:]
	}
	return nil
}

// WriteStdinAt sends input whose first byte is at offset off of all that the
// process is given; what it has already it is not given again. The server
// answers with an EventStdinAck. A client that keeps its input until then can
// attach anew and go on from Position.Stdin without losing or doubling any; an
// EventPosition with a smaller count says that the sandbox went back. It is for
// sessions that one client writes to.
func (s *ExecStream) WriteStdinAt(ctx context.Context, off int64, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), stdinChunk)
		if err := s.conn.Write(ctx, websocket.MessageBinary, StdinAtFrame(off, p[:n])); err != nil {
			return fmt.Errorf("send input: %w", err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// CloseStdin ends the input of the process.
func (s *ExecStream) CloseStdin(ctx context.Context) error {
	if err := s.conn.Write(ctx, websocket.MessageBinary, []byte{FrameCloseStdin}); err != nil {
		return fmt.Errorf("end input: %w", err)
	}
	return nil
}

// Close detaches. The process goes on.
func (s *ExecStream) Close() error { return s.conn.CloseNow() }

// closeError translates how a socket ended.
func closeError(err error) error {
	var ce websocket.CloseError
	if !errors.As(err, &ce) {
		return fmt.Errorf("connection lost: %w", err)
	}
	switch ce.Code {
	case websocket.StatusNormalClosure:
		return io.EOF
	case CloseSessionLost, CloseSandboxEnded:
		return &Error{Status: http.StatusGone, Code: CodeGone, Message: ce.Reason}
	}
	return fmt.Errorf("connection closed by the server: %s (%d)", ce.Reason, ce.Code)
}
