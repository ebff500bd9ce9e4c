// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errStopped is what a stopped source reads.
var errStopped = errors.New("no more input is wanted")

// source is standard input read so that a Read that waits can be stopped: the
// reading goroutine must not outlive a command, nor take what the next program
// is to read. Only files can be stopped; another reader's Read ends by itself.
type source struct {
	r         io.Reader
	file      *os.File // r, if it is one
	stopping  *os.File // readable end of a pipe, at its end when stopped
	stopWrite *os.File
}

// newSource makes a source of r. It must be closed.
func newSource(r io.Reader) (*source, error) {
	s := &source{r: r}
	file, ok := r.(*os.File)
	if !ok {
		return s, nil
	}
	var err error
	if s.stopping, s.stopWrite, err = os.Pipe(); err != nil {
		return nil, err
	}
	s.file = file
	return s, nil
}

// Read implements io.Reader. It fails with errStopped after stop.
func (s *source) Read(p []byte) (int, error) {
	if s.file == nil {
		return s.r.Read(p)
	}
	fds := []unix.PollFd{
		{Fd: int32(s.stopping.Fd()), Events: unix.POLLIN},
		{Fd: int32(s.file.Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, os.NewSyscallError("poll", err)
		case fds[0].Revents != 0:
			return 0, errStopped
		}
		return s.file.Read(p)
	}
}

// stop ends a Read that waits and all later ones. It tells whether it could.
func (s *source) stop() bool {
	if s.file == nil {
		return false
	}
	_ = s.stopWrite.Close() // a pipe of our own: nothing is lost
	return true
}

// close gives back what the source holds, when nothing reads any more.
func (s *source) close() {
	if s.file != nil {
		_ = s.stopping.Close()
		_ = s.stopWrite.Close() // again, if it was stopped
	}
}
