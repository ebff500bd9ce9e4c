// SPDX-License-Identifier: Apache-2.0

package agentclient

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/fault"
)

// fake is the guest end of a socket, played by a test.
type fake struct {
	t  *testing.T
	fd int
}

// pair makes a client and the fake agent at its other end. The fake answers
// the Hello if greet says so.
func pair(t *testing.T, greet bool) (*Client, *fake) {
	t.Helper()
	host, guest, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Close() })
	c, err := New(host, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	host.Close() // the client has a descriptor of its own
	t.Cleanup(func() { c.Close() })
	f := &fake{t: t, fd: int(guest.Fd())}
	if greet {
		done := make(chan error, 1)
		go func() {
			_, err := c.Hello(t.Context(), HelloRequest{Timeline: "t"})
			done <- err
		}()
		f.ack(f.recv())
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	return c, f
}

func (f *fake) recv() wire.Packet {
	buf := make([]byte, wire.MaxPacket)
	n, _, err := unix.Recvfrom(f.fd, buf, 0)
	if err != nil || n == 0 {
		return wire.Packet{}
	}
	p, err := wire.Split(buf[:n])
	if err != nil {
		f.t.Errorf("the client sent %v", err)
	}
	return p
}

func (f *fake) send(b []byte) error { return unix.Sendto(f.fd, b, unix.MSG_NOSIGNAL, nil) }

func (f *fake) sendJSON(t wire.Type, id uint32, v any) {
	b, err := wire.Marshal(t, id, v)
	if err != nil {
		f.t.Error(err)
		return
	}
	_ = f.send(b)
}

func (f *fake) ack(p wire.Packet) {
	var h wire.HelloBody
	if err := wire.Unmarshal(p.Payload, &h); err != nil || p.Type != wire.Hello {
		f.t.Errorf("hello: %d, %v", p.Type, err)
	}
	f.sendJSON(wire.HelloAck, 0, wire.HelloAckBody{Nonce: h.Nonce, Version: 1, MinVersion: 1})
}

func TestKindsAreThoseOfFaults(t *testing.T) {
	t.Parallel()
	for _, k := range []string{wire.Invalid, wire.NotFound, wire.Conflict, wire.Exhausted, wire.Unavailable, wire.Internal} {
		if err := guestFault(&wire.Error{Kind: k, Message: "m"}); string(fault.As(err).Kind) != k {
			t.Errorf("%s becomes %s", k, fault.As(err).Kind)
		}
	}
	err := guestFault(&wire.Error{Kind: "forbidden", Message: "\x1b[31mred\n" + strings.Repeat("x", 1<<16)})
	if f := fault.As(err); f.Kind != fault.Internal || len(f.Message) > 2000 || strings.ContainsAny(f.Message, "\x1b\n") {
		t.Errorf("%s %q", f.Kind, f.Message)
	}
}

func TestStalePacketsBeforeTheAck(t *testing.T) {
	t.Parallel()
	c, f := pair(t, false)
	for range 20 { // of a peer before, with ids that will be used again
		f.sendJSON(wire.Reply, 1, wire.ReplyBody{Result: json.RawMessage(`{"id":"stale"}`)})
		_ = f.send(wire.AppendData(nil, 1, 0, []byte("stale")))
	}
	f.sendJSON(wire.HelloAck, 0, wire.HelloAckBody{Nonce: "another", Version: 1, MinVersion: 1})
	if _, err := c.Session(t.Context(), "x"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("call before the hello: %v", err)
	}
	go func() {
		f.ack(f.recv())
		f.sendJSON(wire.Reply, f.recv().ID, wire.ReplyBody{Result: json.RawMessage(`{"id":"fresh"}`)})
	}()
	if _, err := c.Hello(t.Context(), HelloRequest{}); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Session(t.Context(), "x"); err != nil || s.ID != "fresh" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestIncompatibleAgent(t *testing.T) {
	t.Parallel()
	for _, v := range [][2]int{{0, 0}, {wire.Version + 7, wire.Version + 1}} {
		c, f := pair(t, false)
		go func() {
			var h wire.HelloBody
			_ = wire.Unmarshal(f.recv().Payload, &h)
			f.sendJSON(wire.HelloAck, 0, wire.HelloAckBody{Nonce: h.Nonce, Version: v[0], MinVersion: v[1]})
		}()
		if _, err := c.Hello(t.Context(), HelloRequest{}); !fault.Is(err, fault.Conflict) {
			t.Errorf("%v: %v", v, err)
		}
	}
}

// A run on an agent of the first protocol is a start, a close and an attach.
func TestRunOnAnOldAgent(t *testing.T) {
	t.Parallel()
	c, f := pair(t, true) // version 1
	go func() {
		for _, op := range []wire.Op{wire.OpExecStart, wire.OpExecClose, wire.OpExecAttach} {
			p := f.recv()
			var req wire.RequestBody
			if err := wire.Unmarshal(p.Payload, &req); err != nil || req.Op != op {
				t.Errorf("%s, want %s: %v", req.Op, op, err)
			}
			if op == wire.OpExecAttach {
				f.sendJSON(wire.Accept, p.ID, wire.AttachAccept{Session: wire.SessionInfo{ID: "es-1"}})
				_ = f.send(wire.AppendReplayEnd(nil, p.ID, 0))
				f.sendJSON(wire.Reply, p.ID, wire.ReplyBody{Result: json.RawMessage(`{"code":7}`)})
				continue
			}
			f.sendJSON(wire.Reply, p.ID, wire.ReplyBody{Result: json.RawMessage(`{"id":"es-1"}`)})
		}
	}()
	out, err := c.Run(t.Context(), StartRequest{Argv: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		ev, err := out.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ev.Kind == EventExit {
			if ev.Exit.Code != 7 {
				t.Errorf("%+v", ev.Exit)
			}
			return
		}
	}
}

// TestDeadAgent checks that calls to an agent that takes nothing end with
// their context, and those to one that has gone at once.
func TestDeadAgent(t *testing.T) {
	t.Parallel()
	c, f := pair(t, true)
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	// Larger than what the socket holds: the send itself waits.
	if err := c.WriteFile(ctx, "x", 0, strings.NewReader(strings.Repeat("x", 8<<20))); !errors.Is(err, context.DeadlineExceeded) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("frozen agent: %v", err)
	}
	for { // fill the socket
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := c.conn.send(ctx, wire.AppendHeader(make([]byte, 0, 60000), wire.Data, 99)[:50000])
		cancel()
		if err != nil {
			break
		}
	}
	if err := c.Probe(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("frozen agent, full socket: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	pending := make(chan error, 1)
	go func() { pending <- c.Probe(t.Context()) }()
	_ = unix.Shutdown(f.fd, unix.SHUT_RDWR)
	if err := <-pending; !fault.Is(err, fault.Unavailable) {
		t.Errorf("dead agent: %v", err)
	}
	<-c.Done()
	if c.Err() == nil {
		t.Error("no reason")
	}
	if err := c.Probe(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("after: %v", err)
	}
	if _, err := c.Hello(t.Context(), HelloRequest{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("hello after: %v", err)
	}
}

// TestGivenUpCallIsCancelled checks that the agent hears of it, and that what
// it had already sent does no harm.
func TestGivenUpCallIsCancelled(t *testing.T) {
	t.Parallel()
	c, f := pair(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- c.Probe(ctx) }()
	req := f.recv()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if p := f.recv(); p.Type != wire.Cancel || p.ID != req.ID {
		t.Errorf("got %+v", p)
	}
	f.sendJSON(wire.Reply, req.ID, wire.ReplyBody{})
	go func() { f.sendJSON(wire.Reply, f.recv().ID, wire.ReplyBody{}) }()
	if err := c.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestHostileAgent answers each kind of call with what it must not say.
func TestHostileAgent(t *testing.T) {
	t.Parallel()
	accept := func(f *fake, id uint32) {
		f.sendJSON(wire.Accept, id, wire.AttachAccept{Session: wire.SessionInfo{ID: "es-1"}})
	}
	output := func(id uint32, off uint64, n int) []byte {
		return append(wire.AppendOutputHeader(nil, id, wire.Stdout, int64(off)), make([]byte, n)...)
	}
	for name, attack := range map[string]func(f *fake, id uint32){
		"output before accept": func(f *fake, id uint32) { _ = f.send(output(id, 0, 10)) },
		"two accepts":          func(f *fake, id uint32) { accept(f, id); accept(f, id) },
		"data for output":      func(f *fake, id uint32) { accept(f, id); _ = f.send(wire.AppendData(nil, id, 0, []byte("x"))) },
		"two replay ends": func(f *fake, id uint32) {
			accept(f, id)
			_ = f.send(wire.AppendReplayEnd(nil, id, 0))
			_ = f.send(wire.AppendReplayEnd(nil, id, 0))
		},
		"huge offset": func(f *fake, id uint32) { accept(f, id); _ = f.send(output(id, 1<<63, 10)) },
		"wrong offset": func(f *fake, id uint32) {
			accept(f, id)
			_ = f.send(output(id, 7, 10))
		},
		"empty output": func(f *fake, id uint32) { accept(f, id); _ = f.send(output(id, 0, 0)) },
		"beyond the credit": func(f *fake, id uint32) {
			accept(f, id)
			for i := range 20 {
				_ = f.send(output(id, uint64(i*wire.MaxChunk), wire.MaxChunk))
			}
		},
		"many small beyond the credit": func(f *fake, id uint32) {
			accept(f, id)
			for i := range 3000 {
				_ = f.send(output(id, uint64(i), 1))
			}
		},
		"bad session": func(f *fake, id uint32) {
			f.sendJSON(wire.Accept, id, wire.AttachAccept{Session: wire.SessionInfo{ID: "../../x"}})
		},
		"negative from": func(f *fake, id uint32) {
			f.sendJSON(wire.Accept, id, map[string]any{"from": -1, "session": wire.SessionInfo{ID: "a"}})
		},
		"not json":       func(f *fake, id uint32) { _ = f.send(append(wire.AppendHeader(nil, wire.Accept, id), "{{{"...)) },
		"reply not json": func(f *fake, id uint32) { _ = f.send(append(wire.AppendHeader(nil, wire.Reply, id), "{{{"...)) },
		"deep json": func(f *fake, id uint32) {
			_ = f.send(append(wire.AppendHeader(nil, wire.Reply, id), strings.Repeat("[", 60000)...))
		},
		"no exit":      func(f *fake, id uint32) { accept(f, id); f.sendJSON(wire.Reply, id, wire.ReplyBody{}) },
		"no accept":    func(f *fake, id uint32) { f.sendJSON(wire.Reply, id, wire.ReplyBody{}) },
		"huge credit":  func(f *fake, id uint32) { _ = f.send(wire.AppendCredit(nil, id, 1<<31)) },
		"unknown type": func(f *fake, id uint32) { _ = f.send(wire.AppendHeader(nil, 200, id)) },
		"short packet": func(f *fake, _ uint32) { _ = f.send([]byte{1}) },
		"long packet":  func(f *fake, _ uint32) { _ = f.send(make([]byte, wire.MaxPacket+100)) },
		"empty packet": func(f *fake, _ uint32) { _ = f.send(nil) },
		"flood": func(f *fake, _ uint32) {
			for i := uint32(0); f.send(wire.AppendData(nil, i+1000, 0, []byte("x"))) == nil; i++ {
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, f := pair(t, true)
			done := make(chan struct{})
			go func() {
				defer close(done)
				attack(f, f.recv().ID)
			}()
			err := func() error {
				out, err := c.Attach(t.Context(), "es-1", From{})
				if err != nil {
					return err
				}
				<-done // before anything is taken
				defer out.Close()
				for {
					if _, err := out.Next(t.Context()); err != nil {
						return err
					}
				}
			}()
			if !fault.Is(err, fault.Internal) && !fault.Is(err, fault.Unavailable) {
				t.Errorf("%v", err)
			}
			<-done
		})
	}
}

// TestGarbageIsBounded throws random packets at a client with calls in
// progress: nothing may panic, and memory stays bounded.
func TestGarbageIsBounded(t *testing.T) {
	t.Parallel()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for seed := range uint64(20) {
		c, f := pair(t, true)
		for range 8 {
			go func() { _, _ = c.Attach(t.Context(), "es-1", From{}) }()
			go func() { _, _ = c.List(t.Context(), "/") }()
		}
		r := rand.New(rand.NewPCG(seed, 1))
		for range 5000 {
			b := make([]byte, 5+r.IntN(400))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			b[0] = byte(r.IntN(13))
			binary.LittleEndian.PutUint32(b[1:], uint32(r.IntN(20)))
			if f.send(b) != nil {
				break
			}
		}
		c.Close()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("memory grew by %d MB", grown>>20)
	}
}

// FuzzPackets feeds a client with a call of each kind arbitrary packets.
func FuzzPackets(f *testing.F) {
	f.Add(byte(wire.Accept), []byte(`{"session":{"id":"es-1"}}`), byte(wire.Output), append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0}, 'x'))
	f.Add(byte(wire.Reply), []byte(`{"error":{"kind":"k"}}`), byte(wire.Data), []byte{})
	f.Add(byte(wire.Accept), []byte(`null`), byte(wire.ReplayEnd), make([]byte, 8))
	f.Fuzz(func(t *testing.T, t1 byte, p1 []byte, t2 byte, p2 []byte) {
		if len(p1)+len(p2) > wire.MaxPayload {
			return
		}
		c := &Client{
			log: slog.New(slog.DiscardHandler), done: make(chan struct{}),
			calls: map[uint32]*call{}, cancel: make(chan struct{}, 1), ready: true,
		}
		for i, bulk := range []wire.Type{0, wire.Data, wire.Output} {
			k := &call{c: c, id: uint32(i), bulk: bulk, wake: make(chan struct{}, 1), credit: wire.Window}
			c.calls[k.id] = k
			for _, b := range [][]byte{
				append(wire.AppendHeader(nil, wire.Type(t1), k.id), p1...),
				append(wire.AppendHeader(nil, wire.Type(t2), k.id), p2...),
			} {
				if err := c.take(b); err != nil && !errors.Is(err, wire.ErrMalformed) {
					t.Fatal(err)
				}
			}
			k.finish(nil, io.ErrUnexpectedEOF)
			out := &Output{k: k}
			for {
				if ev, err := out.Next(t.Context()); err != nil {
					break
				} else if ev.Kind == EventOutput && (len(ev.Data) == 0 || ev.Offset < 0) {
					t.Fatalf("%+v", ev)
				}
			}
		}
	})
}

func TestCloseLeavesTheDescriptor(t *testing.T) {
	t.Parallel()
	host, guest, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	defer guest.Close()
	for range 3 {
		c, err := New(host, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		<-c.Done()
	}
	if _, err := host.Write([]byte("still open")); err != nil {
		t.Error(err)
	}
	if _, err := New(os.NewFile(99999, "none"), nil); err == nil {
		t.Error("a client of a bad descriptor")
	}
}
