// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// call is one request being served, with its flow control both ways.
type call struct {
	p      *peer
	id     uint32
	ctx    context.Context // ends with the call, its Cancel, or its peer
	cancel context.CancelFunc

	mu       sync.Mutex
	cond     *sync.Cond // any change of what follows, or the end of ctx
	credit   int        // what may still be sent
	in       []chunk    // what has arrived and not been taken
	inCredit int        // what the peer may still send
	inEnd    bool       // the peer has sent all
}

// chunk is one Data packet.
type chunk struct {
	off int64
	b   []byte
}

func newCall(p *peer, id uint32) *call {
	ctx, cancel := context.WithCancel(p.ctx)
	c := &call{p: p, id: id, ctx: ctx, cancel: cancel, credit: wire.Window, inCredit: wire.Window}
	c.cond = sync.NewCond(&c.mu)
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cond.Broadcast()
	})
	return c
}

// run serves the call to its end. Nothing a request does can end PID 1.
func (c *call) run(h handler, req wire.RequestBody) {
	defer c.cancel()
	result, err := func() (result any, err error) {
		defer func() {
			if r := recover(); r != nil {
				c.p.ch.log.Error("panic in a request", "op", req.Op, "panic", r, "stack", string(debug.Stack()))
				err = failf(wire.Internal, "the agent failed in %s: %v", req.Op, r)
			}
		}()
		return h.call(c, req)
	}()
	c.p.end(c)
	c.reply(result, err)
}

// reply ends the call.
func (c *call) reply(result any, err error) {
	var body wire.ReplyBody
	if err != nil {
		body.Error = report(err)
	} else if result != nil {
		if body.Result, err = json.Marshal(result); err != nil {
			body.Error = report(err)
		}
	}
	b, err := wire.Marshal(wire.Reply, c.id, body)
	if err != nil {
		b, _ = wire.Marshal(wire.Reply, c.id, wire.ReplyBody{Error: failf(wire.Internal, "%v", err)})
	}
	_ = c.p.ch.send(c.p, b) // without a peer there is nobody to tell
}

// accept tells the peer that the stream begins.
func (c *call) accept(result any) error {
	b, err := wire.Marshal(wire.Accept, c.id, result)
	if err != nil {
		return err
	}
	return c.send(b)
}

func (c *call) send(b []byte) error { return c.p.ch.send(c.p, b) }

// waitCredit waits until at least one byte may be sent, and gives the credit.
func (c *call) waitCredit() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for wire.Fit(1, c.credit) == 0 {
		if err := c.ctx.Err(); err != nil {
			return 0, err
		}
		c.cond.Wait()
	}
	return c.credit, c.ctx.Err()
}

// spend uses up the credit of a packet with n bytes.
func (c *call) spend(n int) {
	c.mu.Lock()
	c.credit -= wire.Cost(n)
	c.mu.Unlock()
}

func (c *call) addCredit(payload []byte) error {
	n, err := wire.ParseCredit(payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credit = min(c.credit+n, wire.Window)
	c.cond.Broadcast()
	return nil
}

// push takes a Data packet in.
func (c *call) push(payload []byte) error {
	off, b, err := wire.ParseData(payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inCredit < wire.Cost(len(b)) || c.inEnd {
		return fmt.Errorf("%w: data beyond the credit or the end", wire.ErrMalformed)
	}
	c.inCredit -= wire.Cost(len(b))
	c.in = append(c.in, chunk{off, append([]byte(nil), b...)})
	c.cond.Broadcast()
	return nil
}

func (c *call) pushEnd() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inEnd = true
	c.cond.Broadcast()
}

// next takes the next Data packet, or io.EOF after the last, and gives the
// peer new credit when half the window is used up.
func (c *call) next() (chunk, error) {
	c.mu.Lock()
	for len(c.in) == 0 || c.ctx.Err() != nil {
		err := c.ctx.Err()
		if err == nil && c.inEnd {
			err = io.EOF
		}
		if err != nil {
			c.mu.Unlock()
			return chunk{}, err
		}
		c.cond.Wait()
	}
	k := c.in[0]
	c.in = c.in[1:]
	held := 0
	for _, q := range c.in {
		held += wire.Cost(len(q.b))
	}
	grant := wire.Window - held - c.inCredit
	if grant < wire.Window/2 || c.inEnd {
		grant = 0
	}
	c.inCredit += grant
	c.mu.Unlock()
	if grant > 0 {
		if err := c.send(wire.AppendCredit(nil, c.id, grant)); err != nil {
			return chunk{}, err
		}
	}
	return k, nil
}

// upload reads the Data of a call as one stream that begins at offset 0.
type upload struct {
	c    *call
	off  int64
	rest []byte
}

func (u *upload) Read(p []byte) (int, error) {
	if len(u.rest) == 0 {
		k, err := u.c.next()
		if err != nil {
			return 0, err
		}
		if k.off != u.off {
			return 0, fmt.Errorf("%w: offset %d where %d follows", wire.ErrMalformed, k.off, u.off)
		}
		u.rest = k.b
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	u.off += int64(n)
	return n, nil
}

// download writes the Data of a call as one stream that begins at offset 0.
type download struct {
	c   *call
	off int64
	buf []byte
}

func (d *download) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		credit, err := d.c.waitCredit()
		if err != nil {
			return done, err
		}
		n := wire.Fit(len(p)-done, credit)
		d.buf = wire.AppendData(d.buf[:0], d.c.id, d.off, p[done:done+n])
		d.c.spend(n)
		if err := d.c.send(d.buf); err != nil {
			return done, err
		}
		d.off += int64(n)
		done += n
	}
	return done, nil
}
