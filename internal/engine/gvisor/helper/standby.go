// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// standby waits at a socket until this process is told what it is, and puts the
// descriptors for it where they belong. It fails with errDismissed when it is not
// wanted.
func standby(handoff int) error {
	verb, control := make([]byte, 64), make([]byte, unix.CmsgSpace(4*wire.MaxFiles))
	n, cn, _, _, err := recvmsg(handoff, verb, control)
	if err != nil {
		return fmt.Errorf("helper: standby: %w", err)
	}
	if n == 0 {
		return errDismissed
	}
	fds, err := rights(control[:cn])
	if err != nil {
		return fmt.Errorf("helper: standby: %w", err)
	}
	for i := range wire.MaxFiles {
		to := wire.FDFirst + i
		if i >= len(fds) {
			_ = unix.Close(to) // its placeholder, or the socket
			continue
		}
		if err := errors.Join(unix.Dup3(fds[i], to, 0), unix.Close(fds[i])); err != nil {
			return fmt.Errorf("helper: standby: %w", err)
		}
	}
	rename(string(verb[:n]))
	return nil
}

var errDismissed = errors.New("not wanted")

// recvmsg is recvmsg(2), again when interrupted.
func recvmsg(fd int, p, oob []byte) (n, oobn, flags int, from unix.Sockaddr, err error) {
	for {
		n, oobn, flags, from, err = unix.Recvmsg(fd, p, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return n, oobn, flags, from, err
		}
	}
}

// rights are the descriptors in a control message.
func rights(control []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// rename makes this process' command line say what it has become, for whoever
// looks for helpers of a kind: the memory of the arguments is the process' own,
// and the kernel shows what is in it (proc_pid_cmdline(5)).
func rename(verb string) {
	if len(os.Args) < 3 || len(os.Args[2]) < len(verb) {
		return
	}
	arg := unsafe.Slice(unsafe.StringData(os.Args[2]), len(os.Args[2]))
	clear(arg)
	copy(arg, verb)
}

// waiting tells whether this process was started as a standby.
func waiting() bool { return len(os.Args) > 2 && os.Args[2] == wire.Standby }
