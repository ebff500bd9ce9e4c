// SPDX-License-Identifier: Apache-2.0

package agentclient

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/fault"
)

// strayLimit is how many packets that belong to no call are borne, beyond
// those that may still be on their way for calls that were given up.
const (
	strayLimit   = 1000
	strayPerCall = wire.Window/256 + 8
)

// Client is a connection to an agent.
type Client struct {
	conn *conn
	log  *slog.Logger
	done chan struct{}  // closed when the connection has failed or was closed
	wg   sync.WaitGroup // the goroutines

	greeting sync.Mutex   // held during a Hello
	version  atomic.Int64 // of the protocol, that both sides speak

	mu      sync.Mutex
	err     error // why done is closed
	ready   bool  // the agent has acknowledged the latest Hello
	nonce   string
	ack     chan wire.HelloAckBody
	calls   map[uint32]*call
	lastID  uint32
	stray   int
	cancels []uint32      // calls that the agent is to be told are given up
	cancel  chan struct{} // there are some
}

// HelloRequest says who the sandbox is from now on. A Timeline other than the
// agent's present one says that it was restored or copied.
type HelloRequest struct {
	Generation string
	Timeline   string
}

// HelloReply is what the agent says about itself.
type HelloReply = wire.HelloAckBody

// New makes a client of the host end of a control socket. It uses a duplicate
// of f's descriptor: Close closes only that. Two clients of one socket at once
// would take each other's packets.
func New(f *os.File, log *slog.Logger) (*Client, error) {
	conn, err := newConn(f)
	if err != nil {
		return nil, err
	}
	c := &Client{
		conn: conn, log: log, done: make(chan struct{}),
		calls: map[uint32]*call{}, cancel: make(chan struct{}, 1),
	}
	c.wg.Go(c.receive)
	c.wg.Go(c.sendCancels)
	return c, nil
}

// Close ends the connection; calls in progress fail. The sandbox's processes
// do not notice.
func (c *Client) Close() error {
	c.fail(errors.New("the connection was closed"))
	c.wg.Wait()
	return nil
}

// SyscallConn gives the descriptor of the connection, so that it can be handed
// to the keeper again (syscall.Conn).
func (c *Client) SyscallConn() (syscall.RawConn, error) { return c.conn.f.SyscallConn() }

// Done is closed when the connection was closed or has failed for good.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err tells why Done is closed; nil before.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Hello makes this client the agent's peer: calls of an earlier peer, and of
// this client, end. It must be called before any other method.
func (c *Client) Hello(ctx context.Context, req HelloRequest) (HelloReply, error) {
	c.greeting.Lock()
	defer c.greeting.Unlock()
	hello := wire.HelloBody{
		Nonce: rand.Text(), Version: wire.Version, MinVersion: wire.MinVersion,
		Generation: req.Generation, Timeline: req.Timeline,
	}
	packet, err := wire.Marshal(wire.Hello, 0, hello)
	if err != nil {
		return HelloReply{}, fault.Wrap(fault.Invalid, err, "greet the agent")
	}
	ack := make(chan wire.HelloAckBody, 1)
	c.mu.Lock()
	c.ready, c.nonce, c.ack, c.cancels = false, hello.Nonce, ack, nil
	calls := c.calls
	c.calls = map[uint32]*call{}
	c.mu.Unlock()
	for _, k := range calls {
		k.finish(nil, fault.New(fault.Unavailable, "the connection to the sandbox's agent was begun anew"))
	}
	if err := c.conn.send(ctx, packet); err != nil {
		return HelloReply{}, c.unreachable(ctx, err)
	}
	select {
	case a := <-ack:
		c.version.Store(int64(min(a.Version, wire.Version)))
		return a, checkVersion(a)
	case <-ctx.Done():
		return HelloReply{}, c.unreachable(ctx, ctx.Err())
	case <-c.done:
		return HelloReply{}, c.unreachable(ctx, c.Err())
	}
}

// checkVersion refuses an agent that cannot be understood.
func checkVersion(a wire.HelloAckBody) error {
	if a.Version >= wire.MinVersion && a.MinVersion <= wire.Version {
		return nil
	}
	return fault.New(fault.Conflict, "the sandbox's agent speaks protocol versions %d to %d, this server %d to %d",
		a.MinVersion, a.Version, wire.MinVersion, wire.Version).
		WithHint("use a server of the release that made the sandbox or checkpoint, or a newer one")
}

// unreachable makes the fault for a call that did not come through.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.Wrap(fault.Unavailable, ctx.Err(), "the sandbox's agent did not answer in time")
	}
	return fault.Wrap(fault.Unavailable, err, "the sandbox's agent cannot be reached")
}

// fail ends the connection and all calls. Only the first reason counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err, c.ready = err, false
	calls := c.calls
	c.calls = map[uint32]*call{}
	close(c.done)
	c.mu.Unlock()
	_ = c.conn.close()
	for _, k := range calls {
		k.finish(nil, fault.Wrap(fault.Unavailable, err, "the sandbox's agent cannot be reached"))
	}
}

// receive takes packets until the connection fails. It never waits for a call:
// what a call may be sent is bounded by its credit.
func (c *Client) receive() {
	buf := make([]byte, wire.MaxPacket+1)
	for {
		n, err := c.conn.recv(buf)
		if err == nil {
			err = c.take(buf[:n])
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// take handles one packet. An error ends the connection.
func (c *Client) take(b []byte) error {
	p, err := wire.Split(b)
	if err != nil {
		return err
	}
	if p.Type == wire.HelloAck {
		return c.acknowledged(p.Payload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ready {
		return nil // of an earlier peer
	}
	k := c.calls[p.ID]
	if k == nil {
		if c.stray++; c.stray > strayLimit {
			return fmt.Errorf("%w: more than %d packets that belong to no call", wire.ErrMalformed, strayLimit)
		}
		return nil
	}
	over, err := k.receive(p)
	if err != nil {
		c.log.Warn("call ended: the agent broke the protocol", "op", k.op, "err", err)
		k.finish(nil, fault.Wrap(fault.Internal, err, "the sandbox's agent broke the protocol"))
		c.forgetLocked(p.ID)
	} else if over {
		delete(c.calls, p.ID)
	}
	return nil
}

// acknowledged handles a HelloAck. From the right one on, packets count.
func (c *Client) acknowledged(payload []byte) error {
	var ack wire.HelloAckBody
	if err := wire.Unmarshal(payload, &ack); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nonce == "" || ack.Nonce != c.nonce {
		return nil
	}
	c.nonce, c.ready, c.stray = "", true, 0
	c.ack <- ack
	return nil
}

// register gives a call its id and makes it known.
func (c *Client) register(k *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return fault.Wrap(fault.Unavailable, c.err, "the sandbox's agent cannot be reached")
	case !c.ready:
		return fault.New(fault.Unavailable, "the sandbox's agent has not answered yet")
	}
	c.lastID++
	k.id = c.lastID
	c.calls[k.id] = k
	return nil
}

// giveUp ends a call early and lets the agent know.
func (c *Client) giveUp(k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[k.id] == k {
		c.forgetLocked(k.id)
	}
}

// forgetLocked forgets a call whose packets may still come. c.mu is held.
func (c *Client) forgetLocked(id uint32) {
	delete(c.calls, id)
	c.stray -= strayPerCall
	c.cancels = append(c.cancels, id)
	select {
	case c.cancel <- struct{}{}:
	default:
	}
}

// sendCancels tells the agent which calls were given up. It is a goroutine of
// its own because the socket may be full when that happens.
func (c *Client) sendCancels() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for {
		select {
		case <-c.cancel:
		case <-c.done:
			return
		}
		c.mu.Lock()
		ids := c.cancels
		c.cancels = nil
		c.mu.Unlock()
		for _, id := range ids {
			// Closing the connection ends a send that waits.
			if err := c.conn.send(ctx, wire.AppendHeader(nil, wire.Cancel, id)); err != nil {
				c.fail(err)
				return
			}
		}
	}
}
