// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

const (
	// callTimeout bounds a call: the keeper answers at once or is not well.
	callTimeout = 10 * time.Second
	// startTimeout bounds the wait for a keeper that was just started.
	startTimeout = 10 * time.Second
	startPoll    = 5 * time.Millisecond
)

// Client is a connection to a keeper, safe for concurrent use. After an error
// that is no fault, or a call that its context cut short, it is broken: Done is
// closed and every later call fails.
type Client struct {
	conn    *net.UnixConn
	turn    chan struct{} // holds a token while no call is under way
	replies chan result
	closing chan struct{} // closed by Close
	once    sync.Once
	done    chan struct{} // closed when the reader has ended
}

// result is a reply with its descriptors, as files.
type result struct {
	reply
	files []*os.File
}

// errGone is a keeper that has closed the connection, or never let us in.
var errGone = errors.New("keeper: the connection is closed")

// Dial connects to the keeper at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	c := &Client{
		conn: conn.(*net.UnixConn), turn: make(chan struct{}, 1),
		replies: make(chan result), closing: make(chan struct{}), done: make(chan struct{}),
	}
	c.turn <- struct{}{}
	go c.read()
	return c, nil
}

// Ensure connects to the keeper at path, and calls start to start one where
// there is none. start returns when the process is started, not when it serves.
// A keeper that is ending takes a connection to close it unanswered: Ensure asks
// again until it has gone.
func Ensure(ctx context.Context, path string, start func(context.Context) error) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	started := false
	for {
		c, err := dialServing(ctx, path)
		switch {
		case err == nil:
			return c, nil
		case started: // it comes
		case absent(err):
			if err := start(ctx); err != nil {
				return nil, fmt.Errorf("starting the keeper: %w", err)
			}
			started = true
		case !ending(err):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Unavailable, err, "the keeper does not serve %s", path)
		case <-tick.C:
		}
	}
}

// dialServing connects and sees that the keeper answers.
func dialServing(ctx context.Context, path string) (*Client, error) {
	c, err := Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	if _, err := c.page(ctx, ""); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// absent tells whether err says that nobody listens.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// ending tells whether err is that of a connection which the keeper's end broke.
func ending(err error) bool {
	return errors.Is(err, errGone) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// Put has the keeper hold copies of the descriptors, 1 to MaxFiles, under the
// name, in place of what it held there. The caller's own stay open and keep
// their mode. Faults: Invalid for the name or the number, Exhausted when the
// keeper is full.
func (c *Client) Put(ctx context.Context, name string, conns ...syscall.Conn) error {
	if len(conns) < 1 || len(conns) > MaxFiles {
		return fault.New(fault.Invalid, "keeper: %d descriptors under %q, allowed are 1 to %d", len(conns), name, MaxFiles)
	}
	fds, err := dupConns(conns)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	defer closeAll(fds)
	_, err = c.call(ctx, request{opPut, name}, fds)
	return err
}

// Get gives copies of the descriptors held under the name, in the order of the
// Put, for the caller to close. They share their mode and position with those
// held. A NotFound fault says that there are none.
func (c *Client) Get(ctx context.Context, name string) ([]*os.File, error) {
	r, err := c.call(ctx, request{opGet, name}, nil)
	return r.files, err
}

// List gives the names under which something is held, sorted.
func (c *Client) List(ctx context.Context) ([]string, error) {
	names := []string{}
	after := ""
	for {
		page, err := c.page(ctx, after)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return names, nil
		}
		names = append(names, page...)
		after = page[len(page)-1]
	}
}

func (c *Client) page(ctx context.Context, after string) ([]string, error) {
	r, err := c.call(ctx, request{opList, after}, nil)
	if err != nil {
		return nil, err
	}
	return decodeNames(r.payload, after)
}

// Drop has the keeper close what it holds under the name. That it holds
// nothing there is no error.
func (c *Client) Drop(ctx context.Context, name string) error {
	_, err := c.call(ctx, request{opDrop, name}, nil)
	return err
}

// Stop ends the keeper, which refuses with a Conflict fault while it holds
// anything.
func (c *Client) Stop(ctx context.Context) error {
	_, err := c.call(ctx, request{opStop, ""}, nil)
	return err
}

// Done is closed when the connection is over: the keeper has ended, or the
// client was closed or is broken.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection. The keeper drops nothing for it.
func (c *Client) Close() {
	c.once.Do(func() {
		close(c.closing)
		c.conn.Close()
	})
	<-c.done
}

// call sends a request and waits for its reply, one call at a time.
func (c *Client) call(ctx context.Context, req request, fds []int) (result, error) {
	if req.op != opStop && (req.op != opList || req.name != "") {
		if err := checkName(req.name); err != nil {
			return result{}, fault.Wrap(fault.Invalid, err, "keeper: bad name %q", req.name)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return result{}, fmt.Errorf("keeper: %w", ctx.Err())
	}
	r, err := c.exchange(ctx, req, fds)
	if err != nil {
		// A reply may still come: the next call must not take it for its own.
		c.Close()
		return result{}, err
	}
	return r, r.err(req.name)
}

func (c *Client) exchange(ctx context.Context, req request, fds []int) (result, error) {
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return result{}, errGone
	}
	if err := send(c.conn, req.encode(), fds); err != nil {
		return result{}, fmt.Errorf("keeper: %w", err)
	}
	select {
	case r := <-c.replies:
		return r, nil
	case <-c.done:
		return result{}, errGone
	case <-ctx.Done():
		return result{}, fmt.Errorf("keeper: %w", ctx.Err())
	}
}

// read receives the replies until the connection ends. It reads also while no
// call is under way, so that Done tells of the keeper's end at once.
func (c *Client) read() {
	defer close(c.done)
	defer c.conn.Close()
	buf := make([]byte, maxReply+1)
	for {
		p, err := receive(c.conn, buf)
		if err != nil {
			return
		}
		r, err := decodeReply(p.data)
		if err != nil || !p.whole {
			closeAll(p.fds)
			return
		}
		res := result{reply: r, files: asFiles(p.fds)}
		select {
		case c.replies <- res:
		case <-c.closing:
			for _, f := range res.files {
				f.Close()
			}
			return
		}
	}
}

func asFiles(fds []int) []*os.File {
	var files []*os.File
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "keeper"))
	}
	return files
}

// err is the fault that a status other than OK stands for.
func (r result) err(name string) error {
	switch r.status {
	case statusOK:
		return nil
	case statusNotFound:
		return fault.New(fault.NotFound, "keeper: nothing is held under %q", name)
	case statusInvalid:
		return fault.New(fault.Invalid, "keeper: %s", r.payload)
	case statusFull:
		return fault.New(fault.Exhausted, "keeper: %s", r.payload)
	case statusBusy:
		return fault.New(fault.Conflict, "keeper: %s", r.payload)
	default:
		return fault.New(fault.Internal, "keeper: status %d: %s", r.status, r.payload)
	}
}
