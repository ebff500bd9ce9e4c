// SPDX-License-Identifier: Apache-2.0

package link

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Client is the helper's end of a connection, safe for concurrent use.
type Client struct {
	conn   *net.UnixConn
	shared *os.File
	hello  hello
	free   chan int      // slots that no read is using
	down   chan struct{} // closed when the connection is over
	read   chan struct{} // closed when nobody reads from it any more

	mu    sync.Mutex
	next  uint64
	calls map[uint64]chan reply // by the request's id
	err   error                 // why the connection is over
}

// errClosed is the end of a connection that this side closed.
var errClosed = errors.New("link: the connection is closed")

// Dial greets the pager over a connection, which is the Client's from then on,
// and waits for what it has. The pager's refusal is an error, with the fault in
// it.
func Dial(conn *os.File) (*Client, error) {
	u, err := packets(conn)
	if err != nil {
		return nil, err
	}
	c, err := dial(u)
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return c, nil
}

func dial(u *net.UnixConn) (*Client, error) {
	if _, err := u.Write(greeting{version: Version}.encode()); err != nil {
		return nil, lost(err)
	}
	b, control := make([]byte, maxPacket+1), make([]byte, unix.CmsgSpace(4))
	n, cn, _, _, err := u.ReadMsgUnix(b, control)
	if err != nil {
		return nil, lost(err)
	}
	shared, err := received(control[:cn])
	if err != nil {
		return nil, err
	}
	h, err := decodeHello(b[:n])
	if why, ok := decodeRefusal(b[:n]); ok {
		err = why
	}
	if shared == nil {
		return nil, cmp.Or(err, errPacket)
	}
	if err != nil {
		return nil, errors.Join(err, shared.Close())
	}
	c := &Client{
		conn: u, shared: shared, hello: h, free: make(chan int, h.slots),
		down: make(chan struct{}), read: make(chan struct{}), calls: map[uint64]chan reply{},
	}
	for i := range h.slots {
		c.free <- i
	}
	go c.receive()
	return c, nil
}

// lost says that the other side is gone. The end of the connection must not be
// taken for the end of a file, so it is not wrapped.
func lost(err error) error { return errors.New("link: the pager is gone: " + err.Error()) }

// received is the one file in a control message, nil where there is none.
func received(control []byte) (*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(msgs) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&msgs[0]) // the buffer has room for one
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errPacket, err)
	}
	return os.NewFile(uintptr(fds[0]), "oc-link"), nil
}

// State gives the file of the engine's object graph.
func (c *Client) State() *File { return c.file(fileState) }

// Meta gives the file of the engine's page map.
func (c *Client) Meta() *File { return c.file(fileMeta) }

// Pages gives the file of page contents.
func (c *Client) Pages() *File { return c.file(filePages) }

func (c *Client) file(i uint8) *File { return &File{c: c, i: i, size: c.hello.sizes[i]} }

// Close ends the connection. Reads under way fail.
func (c *Client) Close() error {
	c.fail(errClosed)
	<-c.read
	return c.shared.Close()
}

// fail ends the connection with the reason; the first one counts.
func (c *Client) fail(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = why
	close(c.down)
	_ = c.conn.Close() // nothing that was written matters any more
}

// failure is why the connection is over.
func (c *Client) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// receive hands out the replies until the connection ends.
func (c *Client) receive() {
	defer close(c.read)
	b := make([]byte, maxPacket+1)
	for {
		n, err := c.conn.Read(b)
		if err != nil {
			c.fail(lost(err))
			return
		}
		if why, ok := decodeRefusal(b[:n]); ok {
			c.fail(why)
			return
		}
		r, err := decodeReply(b[:n])
		if err == nil && !c.deliver(r) {
			err = errPacket
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// deliver gives a reply to who waits for it, if anybody does.
func (c *Client) deliver(r reply) bool {
	c.mu.Lock()
	ch, ok := c.calls[r.id]
	delete(c.calls, r.id)
	c.mu.Unlock()
	if ok {
		ch <- r // has room
	}
	return ok
}

// call has the pager read a piece of a file into a slot.
func (c *Client) call(r request) error {
	ch := make(chan reply, 1)
	c.mu.Lock()
	c.next++
	r.id = c.next
	c.calls[r.id] = ch
	c.mu.Unlock()
	if _, err := c.conn.Write(r.encode()); err != nil {
		c.fail(lost(err))
	}
	select {
	case got := <-ch:
		if got.err == nil && got.n != r.length {
			got.err = errPacket
		}
		return got.err
	case <-c.down:
		return c.failure()
	}
}

// piece reads a piece of a file that is there and fits into a slot.
func (c *Client) piece(file uint8, p []byte, off int64) (int, error) {
	var slot int
	select {
	case <-c.down:
		return 0, c.failure()
	default:
	}
	select {
	case slot = <-c.free:
	case <-c.down:
		return 0, c.failure()
	}
	if err := c.call(request{file: file, slot: uint16(slot), length: uint32(len(p)), offset: uint64(off)}); err != nil {
		select {
		case <-c.down: // the pager may still write into the slot
		default:
			c.free <- slot
		}
		return 0, err
	}
	n, err := c.shared.ReadAt(p, int64(slot)*int64(c.hello.slotBytes))
	c.free <- slot
	if errors.Is(err, io.EOF) { // less memory than was said
		err = errPacket
	}
	if err != nil {
		return 0, fmt.Errorf("link: shared memory: %w", err)
	}
	return n, nil
}

// File is one of the checkpoint's files, read by the pager.
type File struct {
	c    *Client
	i    uint8
	size int64
}

// Size in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt; what it returns the pager has verified. It
// waits for a free slot.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("link: negative offset %d", off)
	}
	for n < len(p) {
		if off >= f.size {
			return n, io.EOF
		}
		want := int(min(int64(len(p)-n), int64(f.c.hello.slotBytes), f.size-off))
		k, err := f.c.piece(f.i, p[n:n+want], off)
		n += k
		off += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
