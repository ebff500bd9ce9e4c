// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

const (
	maxMessage  = 64 << 10         // of a client
	queued      = 8                // messages of a client that wait for the sandbox
	pingEvery   = 30 * time.Second // a silent client is asked whether it is there
	goodbye     = 3 * time.Second  // for a client to take the server's
	maxReason   = 123              // bytes of a close reason, RFC 6455 section 5.5
	closeInside = websocket.StatusInternalError
)

// socket is a WebSocket on which the server mostly writes. Write belongs to any
// goroutine; what the client sends comes from the channel of receive.
type socket struct {
	conn *websocket.Conn
	ctx  context.Context // ends when the socket does
	end  context.CancelFunc
	// serving ends before, when the server stops: reading and writing under it
	// would break the connection off, without a goodbye.
	serving context.Context
	leave   context.CancelFunc
	wg      sync.WaitGroup
	counted func() // takes it off the server's count

	full    atomic.Bool  // the client's messages wait for the sandbox
	written atomic.Int64 // messages that the client's side took
}

// checkUpgrade refuses a request that is no WebSocket handshake.
func checkUpgrade(r *http.Request) error {
	h := r.Header
	if strings.EqualFold(h.Get("Upgrade"), "websocket") && strings.Contains(strings.ToLower(h.Get("Connection")), "upgrade") &&
		h.Get("Sec-WebSocket-Version") == "13" && h.Get("Sec-WebSocket-Key") != "" {
		return nil
	}
	return fault.New(fault.Invalid, "this address speaks WebSocket").
		WithHint("connect with a WebSocket client (protocol version 13)")
}

// accept completes the handshake. The socket must be closed.
func (s *Server) accept(w http.ResponseWriter, r *http.Request) (*socket, error) {
	if !s.beginStream() {
		return nil, fault.New(fault.Unavailable, "the server is stopping").WithHint("connect again in a moment")
	}
	// A page of any origin may connect: what lets it in is a key, not a cookie.
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		s.streams.Done()
		return nil, fault.Wrap(fault.Invalid, err, "the WebSocket handshake failed")
	}
	conn.SetReadLimit(maxMessage)
	so := &socket{conn: conn, counted: s.streams.Done}
	// A hijacked connection's request context ends only with the handler.
	so.ctx, so.end = context.WithCancel(r.Context())
	so.serving, so.leave = context.WithCancel(so.ctx)
	so.wg.Go(so.ping)
	so.wg.Go(func() { so.watch(s.stopping) })
	return so, nil
}

// watch ends the serving when the server stops, and the socket itself if its
// client does not take the goodbye.
func (so *socket) watch(stopping context.Context) {
	select {
	case <-so.ctx.Done():
		return
	case <-stopping.Done():
		so.leave()
	}
	t := time.NewTimer(goodbye)
	defer t.Stop()
	select {
	case <-so.ctx.Done():
	case <-t.C:
		so.end()
	}
}

// message is what a client sent.
type message struct {
	binary bool
	data   []byte
}

// receive gives what the client sends; the channel is closed when the socket
// ends. It must be called once.
func (so *socket) receive() <-chan message {
	ch := make(chan message, queued)
	so.wg.Go(func() {
		defer close(ch)
		defer so.end()
		for {
			typ, data, err := so.conn.Read(so.ctx)
			if err != nil {
				return
			}
			m := message{typ == websocket.MessageBinary, data}
			select {
			case ch <- m:
				continue
			default:
			}
			so.full.Store(true)
			select {
			case ch <- m:
			case <-so.ctx.Done():
				return
			}
			so.full.Store(false)
		}
	})
	return ch
}

// write sends a message. It waits for a slow client, but not for ever.
func (so *socket) write(p []byte) error {
	ctx, cancel := context.WithTimeout(so.ctx, stallTimeout)
	defer cancel()
	if err := so.conn.Write(ctx, websocket.MessageBinary, p); err != nil {
		so.end()
		return err
	}
	so.written.Add(1)
	return nil
}

// ping ends the socket when the client is not there any more. A client that
// takes data is there, and so is one whose messages wait for the sandbox: its
// answer is not read meanwhile.
func (so *socket) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-so.ctx.Done():
			return
		case <-tick.C:
		}
		before := so.written.Load()
		ctx, cancel := context.WithTimeout(so.ctx, stallTimeout)
		err := so.conn.Ping(ctx)
		cancel()
		if err != nil && !so.full.Load() && so.written.Load() == before {
			so.end()
			return
		}
	}
}

// close says why and ends the socket and its goroutines.
func (so *socket) close(code websocket.StatusCode, reason string) {
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	_ = so.conn.Close(code, reason) // waits for the client's answer, bounded by the library
	so.end()
	_ = so.conn.CloseNow()
	so.wg.Wait()
	so.counted()
}

// closing translates the end of a following to a close code and a reason.
func (so *socket) closing(err error) (websocket.StatusCode, string) {
	switch {
	case err == nil:
		return websocket.StatusNormalClosure, ""
	case errors.Is(err, errSessionLost):
		return client.CloseSessionLost, errSessionLost.Message
	case fault.Is(err, fault.Gone):
		return client.CloseSandboxEnded, fault.As(err).Message
	case so.serving.Err() != nil, fault.Is(err, fault.Unavailable), fault.Is(err, fault.Exhausted):
		return client.CloseRetry, "attach again"
	}
	return closeInside, fault.As(err).Message
}
