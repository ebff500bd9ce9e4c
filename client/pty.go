// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"io"

	"github.com/coder/websocket"
)

// PTYRequest says what terminal to open. Zero values mean defaults.
type PTYRequest struct {
	Cols  int    `json:"cols,omitempty" doc:"Default 80"`
	Rows  int    `json:"rows,omitempty" doc:"Default 24"`
	Shell string `json:"shell,omitempty" doc:"Default /bin/bash"`
}

// PTYSession is an open terminal.
type PTYSession struct {
	SessionID string `json:"sessionID"`
	SandboxID string `json:"sandboxID"`
}

// ResizeRequest is the new size of a terminal.
type ResizeRequest struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// OpenPTY starts a shell on a terminal.
func (c *Client) OpenPTY(ctx context.Context, sandboxID string, req PTYRequest) (PTYSession, error) {
	var s PTYSession
	return s, c.call(ctx, "POST", path("sandboxes", sandboxID, "pty"), req, &s)
}

// ResizePTY changes the size of a terminal.
func (c *Client) ResizePTY(ctx context.Context, sandboxID, sessionID string, cols, rows int) error {
	return c.call(ctx, "POST", path("sandboxes", sandboxID, "pty", sessionID, "resize"), ResizeRequest{Cols: cols, Rows: rows}, nil)
}

// ClosePTY ends a terminal and what runs on it. One that ended already is no
// error.
func (c *Client) ClosePTY(ctx context.Context, sandboxID, sessionID string) error {
	return c.call(ctx, "DELETE", path("sandboxes", sandboxID, "pty", sessionID), nil, nil)
}

// PTYStream is an attachment to a terminal: what Read gives is to be drawn, what
// Write takes was typed. Read gives io.EOF when the shell has ended.
type PTYStream struct {
	ctx  context.Context
	conn *websocket.Conn
	rest []byte // of the last message
}

// AttachPTY attaches to a terminal until ctx ends or Close is called.
func (c *Client) AttachPTY(ctx context.Context, sandboxID, sessionID string) (*PTYStream, error) {
	conn, err := c.dial(ctx, path("sandboxes", sandboxID, "pty", sessionID))
	if err != nil {
		return nil, err
	}
	return &PTYStream{ctx: ctx, conn: conn}, nil
}

// Read implements io.Reader; errors are those of ExecStream.Next.
func (s *PTYStream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		_, msg, err := s.conn.Read(s.ctx)
		if err != nil {
			return 0, closeError(err)
		}
		s.rest = msg
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write implements io.Writer.
func (s *PTYStream) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, stdinChunk)
		if err := s.conn.Write(s.ctx, websocket.MessageBinary, p[done:done+n]); err != nil {
			return done, fmt.Errorf("send input: %w", err)
		}
		done += n
	}
	return len(p), nil
}

// Close detaches; the shell goes on.
func (s *PTYStream) Close() error { return s.conn.CloseNow() }

var _ io.ReadWriteCloser = (*PTYStream)(nil)
