// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Offered is a capture's connection that nobody serves by himself.
type Offered struct{ c *conn }

// Offer is Serve without anybody who answers.
func (a *Arena) Offer() (Offered, *os.File, error) {
	c, theirs, err := a.offer()
	return Offered{c}, theirs, err
}

// Await waits until there is a call to take, or the engine has hung up.
func (o Offered) Await() error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(o.c.sock.FD()), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Next takes a call, and answers it if it is not answered.
func (o Offered) Next() error { return o.c.next() }
