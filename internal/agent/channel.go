// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// errPeerGone is what a call gets whose peer was replaced or is not there.
var errPeerGone = errors.New("the peer of this call is gone")

// maxCalls is how many calls of one peer may run at once.
const maxCalls = 512

// channel is the control socket: one descriptor, used with blocking system
// calls, behind which the peer may change without notice.
type channel struct {
	fd  int
	log *slog.Logger

	mu   sync.Mutex // held during a send, so that no packet of an old peer follows an ack
	peer *peer      // who said the latest Hello, or nil
}

// peer is one connection in time: from its Hello to the next one's.
type peer struct {
	ch     *channel
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	calls map[uint32]*call
}

// handler serves what arrives.
type handler interface {
	hello(wire.HelloBody) wire.HelloAckBody
	call(*call, wire.RequestBody) (any, error)
}

// serve reads the descriptor for ever. End of file and errors only mean that
// nobody is there now.
func (ch *channel) serve(h handler) {
	buf := make([]byte, wire.MaxPacket+1)
	const shortest, longest = 10 * time.Millisecond, 250 * time.Millisecond
	pause := shortest
	for {
		n, err := ch.recv(buf)
		if err != nil {
			ch.replace(nil)
			time.Sleep(pause)
			pause = min(2*pause, longest)
			continue
		}
		pause = shortest
		p, err := wire.Split(buf[:n])
		if err != nil {
			ch.log.Warn("packet dropped", "err", err)
			continue
		}
		if p.Type == wire.Hello {
			ch.greet(h, p.Payload)
		} else if ch.peer != nil { // only this goroutine changes it
			ch.peer.dispatch(h, p)
		}
	}
}

// recv waits for one packet.
func (ch *channel) recv(buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(ch.fd, buf, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN: // someone made it non-blocking
			ch.poll(unix.POLLIN)
		case err == nil && n == 0:
			return 0, io.EOF
		default:
			return n, err
		}
	}
}

func (ch *channel) poll(events int16) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(ch.fd), Events: events}}, -1)
}

// greet replaces the peer and acknowledges its Hello.
func (ch *channel) greet(h handler, payload []byte) {
	var hello wire.HelloBody
	if err := wire.Unmarshal(payload, &hello); err != nil {
		ch.log.Warn("hello dropped", "err", err)
		return
	}
	p := ch.replace(new(peer))
	ack, err := wire.Marshal(wire.HelloAck, 0, h.hello(hello))
	if err == nil {
		err = ch.send(p, ack)
	}
	if err != nil {
		ch.log.Warn("hello not acknowledged", "err", err)
	}
}

// replace makes p the peer and ends all calls of the one before. The lock makes
// it wait for a packet that is just being sent; one that is not yet, never is.
func (ch *channel) replace(p *peer) *peer {
	if p != nil {
		ctx, cancel := context.WithCancel(context.Background())
		*p = peer{ch: ch, ctx: ctx, cancel: cancel, calls: map[uint32]*call{}}
	}
	ch.mu.Lock()
	old := ch.peer
	ch.peer = p
	ch.mu.Unlock()
	if old != nil {
		old.cancel()
	}
	return p
}

// send sends one packet for p, waiting while the socket is full.
func (ch *channel) send(p *peer, b []byte) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for {
		if ch.peer != p || p == nil {
			return errPeerGone
		}
		switch err := unix.Sendto(ch.fd, b, unix.MSG_NOSIGNAL, nil); err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			ch.poll(unix.POLLOUT)
		default: // the reader notices too, and replaces the peer
			p.cancel()
			return err
		}
	}
}

// dispatch handles one packet of the peer. It runs on the reading goroutine and
// does not wait for any call.
func (p *peer) dispatch(h handler, pk wire.Packet) {
	if pk.Type == wire.Request {
		p.begin(h, pk)
		return
	}
	p.mu.Lock()
	c := p.calls[pk.ID]
	p.mu.Unlock()
	if c == nil {
		return // the call has just ended
	}
	var err error
	switch pk.Type {
	case wire.Data:
		err = c.push(pk.Payload)
	case wire.End:
		c.pushEnd()
	case wire.Credit:
		err = c.addCredit(pk.Payload)
	case wire.Cancel:
		c.cancel()
	}
	if err != nil {
		p.ch.log.Warn("call ended by a bad packet", "id", pk.ID, "err", err)
		c.cancel()
	}
}

// begin starts the call of a Request in a goroutine of its own.
func (p *peer) begin(h handler, pk wire.Packet) {
	var req wire.RequestBody
	err := wire.Unmarshal(pk.Payload, &req)
	p.mu.Lock()
	_, taken := p.calls[pk.ID]
	if err == nil && !taken && len(p.calls) >= maxCalls {
		err = failf(wire.Exhausted, "more than %d calls to the agent at once", maxCalls)
	}
	c := newCall(p, pk.ID)
	if err == nil && !taken {
		p.calls[pk.ID] = c
	}
	p.mu.Unlock()
	switch {
	case taken:
		p.ch.log.Warn("request dropped: its id is in use", "id", pk.ID)
	case err != nil:
		c.reply(nil, err)
	default:
		go c.run(h, req)
		return
	}
	c.cancel()
}

func (p *peer) end(c *call) {
	p.mu.Lock()
	delete(p.calls, c.id)
	p.mu.Unlock()
}
