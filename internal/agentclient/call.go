// SPDX-License-Identifier: Apache-2.0

package agentclient

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/fault"
)

// call is one call in progress. One goroutine at a time uses it.
type call struct {
	c    *Client
	op   wire.Op
	id   uint32
	bulk wire.Type // the bulk packets the agent may send: Data, Output or none (0)

	wake chan struct{} // something below has changed

	mu       sync.Mutex
	accepted json.RawMessage // of Accept; nil before
	queue    []item          // arrived and not taken
	credit   int             // what the agent may still send
	owed     int             // taken from the queue, and not yet given back as credit
	replayed bool            // ReplayEnd has come
	send     int             // what may still be sent
	over     bool            // the call has ended: result and err say how
	result   json.RawMessage
	err      error
}

// item is a bulk packet or, with no bytes, a ReplayEnd.
type item struct {
	stream wire.Stream
	off    int64
	b      []byte
}

// begin sends a request.
func (c *Client) begin(ctx context.Context, op wire.Op, bulk wire.Type, args any) (*call, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "encode the arguments of %s", op)
	}
	k := &call{c: c, op: op, bulk: bulk, wake: make(chan struct{}, 1), credit: wire.Window, send: wire.Window}
	if err := c.register(k); err != nil {
		return nil, err
	}
	packet, err := wire.Marshal(wire.Request, k.id, wire.RequestBody{Op: op, Args: raw})
	if err != nil {
		c.giveUp(k)
		return nil, fault.New(fault.Invalid, "the arguments of %s are too large: %v", op, err).
			WithHint("put what is long into a file of the sandbox, and give the file's name")
	}
	if err := c.conn.send(ctx, packet); err != nil {
		c.giveUp(k)
		return nil, c.unreachable(ctx, err)
	}
	return k, nil
}

// unary makes a call that only has a reply.
func (c *Client) unary(ctx context.Context, op wire.Op, args, result any) error {
	k, err := c.begin(ctx, op, 0, args)
	if err != nil {
		return err
	}
	return k.finished(ctx, result)
}

// promptTime bounds the calls that the agent answers from memory. It is longer
// than any pause of a sandbox.
const promptTime = 2 * time.Minute

// prompt is unary for a call whose answer does not depend on what a guest does:
// an agent that gives none is not waited for without end.
func (c *Client) prompt(ctx context.Context, op wire.Op, args, result any) error {
	ctx, cancel := context.WithTimeout(ctx, promptTime)
	defer cancel()
	return c.unary(ctx, op, args, result)
}

// receive takes a packet in and tells whether it was the call's last. An error
// is the agent's fault.
func (k *call) receive(p wire.Packet) (over bool, err error) {
	if p.Type == wire.Reply {
		return true, k.reply(p.Payload)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.signal()
	if p.Type == wire.Credit {
		n, err := wire.ParseCredit(p.Payload)
		k.send = min(k.send+n, wire.Window)
		return false, err
	}
	if p.Type == wire.Accept && k.bulk != 0 && k.accepted == nil {
		k.accepted = append(json.RawMessage{}, p.Payload...)
		return false, nil
	}
	var it item
	switch {
	case k.accepted == nil:
		err = fmt.Errorf("%w: packet of type %d out of turn", wire.ErrMalformed, p.Type)
	case p.Type == wire.ReplayEnd && k.bulk == wire.Output && !k.replayed:
		k.replayed = true
		it.off, err = wire.ParseReplayEnd(p.Payload)
	case p.Type == wire.Data && k.bulk == wire.Data:
		it.off, it.b, err = wire.ParseData(p.Payload)
	case p.Type == wire.Output && k.bulk == wire.Output:
		it.stream, it.off, it.b, err = wire.ParseOutput(p.Payload)
	default:
		err = fmt.Errorf("%w: packet of type %d out of turn", wire.ErrMalformed, p.Type)
	}
	if err == nil && len(it.b) > 0 {
		if k.credit -= wire.Cost(len(it.b)); k.credit < 0 {
			err = fmt.Errorf("%w: more data than it was given credit for", wire.ErrMalformed)
		}
	}
	if err == nil {
		it.b = append([]byte(nil), it.b...)
		k.queue = append(k.queue, it)
	}
	return false, err
}

// reply ends the call as the agent says.
func (k *call) reply(payload []byte) error {
	var body wire.ReplyBody
	if err := wire.Unmarshal(payload, &body); err != nil {
		return err
	}
	if body.Error != nil {
		k.finish(nil, guestFault(body.Error))
	} else {
		k.finish(body.Result, nil)
	}
	return nil
}

// finish ends the call; only the first end counts.
func (k *call) finish(result json.RawMessage, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.over {
		k.over, k.result, k.err = true, result, err
	}
	k.signal()
}

func (k *call) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// until waits for a condition, which is checked under the call's mutex, and
// leaves that mutex locked. When ctx ends it gives an error instead.
func (k *call) until(ctx context.Context, cond func() bool) error {
	for {
		k.mu.Lock()
		if cond() {
			return nil
		}
		k.mu.Unlock()
		select {
		case <-k.wake:
		case <-ctx.Done():
			return k.c.unreachable(ctx, ctx.Err())
		}
	}
}

// accept waits until the agent accepts a streaming call, and decodes what it
// says then.
func (k *call) accept(ctx context.Context, into any) error {
	if err := k.until(ctx, func() bool { return k.accepted != nil || k.over }); err != nil {
		k.c.giveUp(k)
		return err
	}
	accepted, err := k.accepted, k.err
	k.mu.Unlock()
	if accepted == nil {
		if err == nil {
			err = k.broken("it did not accept the call")
		}
		return err
	}
	if err := wire.Unmarshal(accepted, into); err != nil {
		k.c.giveUp(k)
		return k.broken(err.Error())
	}
	return nil
}

// finished waits for the reply, decodes its result and gives its error.
func (k *call) finished(ctx context.Context, into any) error {
	if err := k.until(ctx, func() bool { return k.over }); err != nil {
		k.c.giveUp(k)
		return err
	}
	defer k.mu.Unlock()
	if k.err != nil || into == nil {
		return k.err
	}
	if err := wire.Unmarshal(k.result, into); err != nil {
		return k.broken(err.Error())
	}
	return nil
}

// next takes the next item, and gives the agent new credit when half the window
// is used up. After the last it gives io.EOF or the call's error. The call goes
// on if ctx ends.
func (k *call) next(ctx context.Context) (item, error) {
	if err := k.until(ctx, func() bool { return len(k.queue) > 0 || k.over }); err != nil {
		return item{}, err
	}
	if len(k.queue) == 0 {
		defer k.mu.Unlock()
		if k.err != nil {
			return item{}, k.err
		}
		return item{}, io.EOF
	}
	it := k.queue[0]
	k.queue[0].b = nil
	k.queue = k.queue[1:]
	if len(it.b) > 0 {
		k.owed += wire.Cost(len(it.b))
	}
	grant := 0
	if k.owed >= wire.Window/2 && !k.over {
		grant, k.owed = k.owed, 0
		k.credit += grant
	}
	k.mu.Unlock()
	if grant > 0 {
		if err := k.c.conn.send(ctx, wire.AppendCredit(nil, k.id, grant)); err != nil {
			k.mu.Lock()
			k.owed, k.credit = k.owed+grant, k.credit-grant
			k.mu.Unlock()
			if ctx.Err() == nil {
				return item{}, k.c.unreachable(ctx, err)
			}
		}
	}
	return it, nil
}

// upload sends the bytes that r gives, the first of which is at offset off,
// and then the end. It stops when the agent ends the call; finished tells why.
func (k *call) upload(ctx context.Context, off int64, r io.Reader) error {
	size := wire.MaxChunk
	if l, ok := r.(interface{ Len() int }); ok { // a key stroke needs no large buffer
		size = min(size, l.Len()+1)
	}
	buf := make([]byte, size)
	var packet []byte
	for {
		n, rerr := r.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			if err := k.until(ctx, func() bool { return k.over || wire.Fit(1, k.send) > 0 }); err != nil {
				return err
			}
			m, over := wire.Fit(len(p), k.send), k.over
			k.send -= wire.Cost(m)
			k.mu.Unlock()
			if over {
				return nil
			}
			packet = wire.AppendData(packet[:0], k.id, off, p[:m])
			if err := k.c.conn.send(ctx, packet); err != nil {
				return k.c.unreachable(ctx, err)
			}
			off += int64(m)
			p = p[m:]
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if err := k.c.conn.send(ctx, wire.AppendHeader(nil, wire.End, k.id)); err != nil {
		return k.c.unreachable(ctx, err)
	}
	return nil
}

// broken is the fault of an agent that does not keep to the protocol.
func (k *call) broken(how string) error {
	return fault.New(fault.Internal, "the sandbox's agent broke the protocol in %s: %s", k.op, printable(how))
}

// guestFault turns an error of the agent into a fault.
func guestFault(e *wire.Error) error {
	kind := fault.Internal
	switch k := fault.Kind(e.Kind); k {
	case fault.Invalid, fault.NotFound, fault.Conflict, fault.Exhausted, fault.Unavailable:
		kind = k
	}
	f := fault.New(kind, "%s", printable(e.Message))
	if e.Hint != "" {
		return f.WithHint("%s", printable(e.Hint))
	}
	return f
}

// printable makes text of the sandbox fit for a message.
func printable(s string) string {
	const most = 1 << 10
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
