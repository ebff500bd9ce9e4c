// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"sync"

	"github.com/opencomputer/oc/client"
)

const (
	// inputChunk is how much input is read, and sent, at once.
	inputChunk = 32 << 10
	// inputWindow is how much input may wait for the session to take it.
	inputWindow = 1 << 20
)

// input is what a session is given on its standard input: read once, and sent
// over one connection after the other. If we are the session's only writer each
// byte is kept until the session has taken it, so that it is taken once.
//
// Bytes are counted from 0 for the first one read. The reading goroutine ends
// with the reader or with end.
type input struct {
	src     *source
	sole    bool // nobody else writes to the session
	closing bool // the end of the reader is the end of the session's input
	start   sync.Once
	over    chan struct{}
	reading sync.WaitGroup

	mu      sync.Mutex // guards the following
	kept    []byte     // bytes that the session may not have taken
	taken   int64      // count of kept[0]
	sent    int64      // count up to which the present connection has them
	base    int64      // the session's own count at our 0
	eof     bool       // the reader has ended
	told    bool       // the session knows, if the present connection holds
	changed chan struct{}
}

// newInput makes the input read from r. With sole set nobody else may write to
// the session; without, what is under way when a connection breaks may be lost.
// With closing set the end of r becomes the end of the session's input. The input
// must be ended.
func newInput(r io.Reader, sole, closing bool) (*input, error) {
	src, err := newSource(r)
	if err != nil {
		return nil, err
	}
	return &input{src: src, sole: sole, closing: closing, over: make(chan struct{}), changed: make(chan struct{})}, nil
}

// end ends the reading. It is called once, when nothing is sent any more.
func (in *input) end() {
	close(in.over)
	if in.src.stop() {
		in.reading.Wait()
	}
	in.src.close()
}

// change wakes whoever waits. mu is held.
func (in *input) change() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// sleep waits for a change with mu released; false says that stop came first.
func (in *input) sleep(stop <-chan struct{}) bool {
	changed := in.changed
	in.mu.Unlock()
	defer in.mu.Lock()
	select {
	case <-changed:
		return true
	case <-stop:
		return false
	}
}

// read fills the input until the reader or the session ends.
func (in *input) read() {
	buf := make([]byte, inputChunk)
	for {
		n, err := in.src.Read(buf)
		if !in.add(buf[:n], err != nil) || err != nil {
			return
		}
	}
}

// add appends bytes as soon as there is room. It is false when the input is not
// needed any more.
func (in *input) add(p []byte, eof bool) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.kept) >= inputWindow {
		if !in.sleep(in.over) {
			return false
		}
	}
	in.kept = append(in.kept, p...)
	in.eof = eof
	in.change()
	return true
}

// sendTo sends over a connection until that or ctx ends. One at a time may run.
func (in *input) sendTo(ctx context.Context, stream *client.ExecStream) {
	in.start.Do(func() { in.reading.Go(in.read) })
	for {
		p, at, ok := in.next(ctx)
		var err error
		switch {
		case !ok:
			return
		case p == nil:
			err = stream.CloseStdin(ctx)
		case in.sole:
			err = stream.WriteStdinAt(ctx, at, p)
		default:
			if err = stream.WriteStdin(ctx, p); err == nil {
				in.acknowledge(at + int64(len(p)))
			}
		}
		if err != nil {
			return // whoever reads the connection learns of it, too
		}
	}
}

// next waits for what is to be sent: bytes and the session's count of the first
// one, or nil for the word that there are no more.
func (in *input) next(ctx context.Context) (p []byte, at int64, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		if rest := in.kept[in.sent-in.taken:]; len(rest) > 0 {
			p, at = append(p, rest[:min(len(rest), inputChunk)]...), in.base+in.sent
			in.sent += int64(len(p))
			return p, at, true
		}
		if in.eof && in.closing && !in.told {
			in.told = true
			return nil, 0, true
		}
		if !in.sleep(ctx.Done()) {
			return nil, 0, false
		}
	}
}

// acknowledge takes note of how much the session has taken, by its own count.
func (in *input) acknowledge(count int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if n := count - in.base; n > in.taken && n <= in.sent {
		in.drop(n)
		in.change()
	}
}

// drop forgets the bytes below n. mu is held.
func (in *input) drop(n int64) {
	in.kept = append(in.kept[:0], in.kept[n-in.taken:]...)
	in.taken = n
}

// resume goes on at the session's count, on a new connection or after a restore:
// what the session has not taken is sent again. A count that does not fit what
// we know, as after a restore, is that of the first byte we still have.
func (in *input) resume(count int64, sameTimeline bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := count - in.base
	if sameTimeline && n >= in.taken && n <= in.taken+int64(len(in.kept)) {
		in.drop(n)
	} else {
		in.base = count - in.taken
	}
	in.sent, in.told = in.taken, false
	in.change()
}
