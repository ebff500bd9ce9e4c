// SPDX-License-Identifier: Apache-2.0

package agentclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketBuffer is how much may be on its way in one direction.
const socketBuffer = 512 << 10

// Pair makes the two ends of a control socket: one for the server and one that
// is to be the agent's standard input.
func Pair() (host, guest *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a control socket: %w", err)
	}
	for _, fd := range fds {
		// More than the system's limit needs privileges; less only costs speed.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
		}
	}
	return os.NewFile(uintptr(fds[0]), "agent-host"), os.NewFile(uintptr(fds[1]), "agent-guest"), nil
}

// conn sends and receives packets. One goroutine receives; any may send.
type conn struct {
	f    *os.File
	rc   syscall.RawConn
	turn chan struct{} // holds one token: whoever took it may send
}

// newConn makes a conn of a duplicate of f's descriptor.
func newConn(f *os.File) (*conn, error) {
	orig, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := orig.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("duplicate the control socket: %w", err)
	}
	// The mode is shared with f, which is only passed around.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &conn{f: os.NewFile(uintptr(fd), "agent"), turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	if c.rc, err = c.f.SyscallConn(); err != nil {
		c.f.Close()
		return nil, err
	}
	return c, nil
}

// recv waits for one packet. io.EOF says that the other end is closed.
func (c *conn) recv(buf []byte) (n int, err error) {
	cerr := c.rc.Read(func(fd uintptr) bool {
		for {
			n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	switch {
	case cerr != nil:
		return 0, cerr
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return n, err
}

// send sends one packet, all of it or, with an error, nothing. It waits while
// the socket is full, but not longer than ctx.
func (c *conn) send(ctx context.Context, b []byte) error {
	select {
	case <-c.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { c.turn <- struct{}{} }()
	if err := ctx.Err(); err != nil {
		return err
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.f.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	defer func() {
		if !stop() {
			<-fired
			_ = c.f.SetWriteDeadline(time.Time{})
		}
	}()
	var err error
	cerr := c.rc.Write(func(fd uintptr) bool {
		for {
			err = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if errors.Is(cerr, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	if cerr != nil {
		return cerr
	}
	return err
}

func (c *conn) close() error { return c.f.Close() }
