// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// packet is one received message with its descriptors, which the receiver owns.
type packet struct {
	data  []byte
	fds   []int
	whole bool // neither data nor descriptors were cut off
}

// receive reads the next packet into buf. An error means that the connection
// is over; there are no descriptors to close then.
func receive(conn *net.UnixConn, buf []byte) (packet, error) {
	oob := make([]byte, unix.CmsgSpace(MaxFiles*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob) // marks what it receives close-on-exec
	fds, parseErr := parseRights(oob[:oobn])
	if err == nil {
		err = parseErr
	}
	if err != nil {
		closeAll(fds)
		return packet{}, err
	}
	cut := flags & (unix.MSG_TRUNC | unix.MSG_CTRUNC)
	return packet{data: buf[:n], fds: fds, whole: cut == 0}, nil
}

// send writes one packet with copies of the descriptors, which stay the caller's.
func send(conn *net.UnixConn, data []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := conn.WriteMsgUnix(data, oob, nil)
	return err
}

// parseRights gives the descriptors of the control messages in oob, also those
// before a malformed one.
func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		if len(m.Data)%4 != 0 { // ParseUnixRights would panic
			return fds, fmt.Errorf("control message with %d bytes of descriptors", len(m.Data))
		}
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, fmt.Errorf("control message: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// dupAll copies the descriptors; on an error it leaves no copy behind.
func dupAll(fds []int) ([]int, error) {
	dups := make([]int, 0, len(fds))
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(dups)
			return nil, fmt.Errorf("copying a descriptor: %w", err)
		}
		dups = append(dups, dup)
	}
	return dups, nil
}

// dupConns copies the descriptors under files, sockets or connections. Unlike
// their Fd methods this leaves the blocking mode alone, which the holder of
// the other copy shares.
func dupConns(conns []syscall.Conn) ([]int, error) {
	var dups []int
	for _, c := range conns {
		raw, err := c.SyscallConn()
		if err == nil {
			var dup []int
			var dupErr error
			err = raw.Control(func(fd uintptr) { dup, dupErr = dupAll([]int{int(fd)}) })
			dups = append(dups, dup...)
			err = errors.Join(err, dupErr)
		}
		if err != nil {
			closeAll(dups)
			return nil, err
		}
	}
	return dups, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
