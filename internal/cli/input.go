// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"sync"

	"github.com/opencomputer/oc/client"
)

const (
	// inputChunk is how much input is read at once.
	inputChunk = 32 << 10
	// inputWindow is how much of the input that was sent is kept, to send it again
	// after a lost connection: more than can be under way on one.
	inputWindow = 16 << 20
)

// input is what a session is given on its standard input: read once from r, sent
// over one connection after the other, each byte taken once by the session.
//
// Bytes are counted from 0 for the first one read. The reading goroutine ends
// with the reader or with end.
type input struct {
	src     *source
	closing bool // tell the session when the reader has ended
	start   sync.Once
	over    chan struct{}
	reading sync.WaitGroup

	mu      sync.Mutex // guards the following
	kept    []byte     // the newest bytes
	first   int64      // count of kept[0]
	sent    int64      // count up to which a connection has them
	base    int64      // the session's own count at our 0
	eof     bool       // the reader has ended
	told    bool       // the session knows
	changed chan struct{}
}

// newInput makes the input read from r. It is told to the session that r has
// ended if closing is set. The input must be ended.
func newInput(r io.Reader, closing bool) (*input, error) {
	src, err := newSource(r)
	if err != nil {
		return nil, err
	}
	return &input{src: src, closing: closing, over: make(chan struct{}), changed: make(chan struct{})}, nil
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

// add appends bytes when those before have been sent. It is false when the input
// is not needed any more.
func (in *input) add(p []byte, eof bool) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.sent < in.first+int64(len(in.kept)) {
		if !in.sleep(in.over) {
			return false
		}
	}
	if len(in.kept) > 2*inputWindow {
		drop := len(in.kept) - inputWindow
		in.kept = append(in.kept[:0], in.kept[drop:]...)
		in.first += int64(drop)
	}
	in.kept = append(in.kept, p...)
	in.eof = eof
	in.change()
	return true
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

// sendTo sends over a connection until that or ctx ends. One at a time may run.
func (in *input) sendTo(ctx context.Context, stream *client.ExecStream) {
	in.start.Do(func() { in.reading.Go(in.read) })
	for {
		p, end, ok := in.next(ctx)
		if !ok {
			return
		}
		if end {
			if stream.CloseStdin(ctx) != nil {
				return
			}
			continue
		}
		if stream.WriteStdin(ctx, p) != nil {
			return
		}
		in.mu.Lock()
		in.sent += int64(len(p))
		in.change()
		in.mu.Unlock()
	}
}

// next waits for what is to be sent: bytes, or the word that there are no more.
func (in *input) next(ctx context.Context) (p []byte, end, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		if rest := in.kept[in.sent-in.first:]; len(rest) > 0 {
			return append([]byte(nil), rest[:min(len(rest), inputChunk)]...), false, true
		}
		if in.eof && in.closing && !in.told {
			in.told = true
			return nil, true, true
		}
		if !in.sleep(ctx.Done()) {
			return nil, false, false
		}
	}
}

// rebase takes note that the session, in a timeline that we have not sent
// anything in, has taken so many bytes: we go on from where we are.
func (in *input) rebase(taken int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.base = taken - in.sent
	in.told = false
	in.change()
}

// rewind makes the next connection go on behind what the session has taken. It
// gives how many bytes were lost and cannot be sent again. sendTo must not be
// running.
func (in *input) rewind(taken int64) (lost int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.told = false
	next := taken - in.base
	switch {
	case next > in.first+int64(len(in.kept)): // another client wrote, too
		in.base = taken - in.sent
		return 0
	case next < in.first:
		lost, next = in.first-next, in.first
	}
	in.sent = next
	return lost
}
