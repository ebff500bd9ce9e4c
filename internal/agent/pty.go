// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// eot is what closes the standard input of a program on a terminal.
const eot = 0x04

// openPTY makes a terminal and gives both its ends: the agent's and the one
// that the process gets.
func openPTY(size wire.Size) (master, slave int, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(master)
		}
	}()
	if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, -1, fmt.Errorf("unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, -1, fmt.Errorf("find the terminal's name: %w", err)
	}
	if err = resizePTY(master, size); err != nil {
		return -1, -1, err
	}
	name := "/dev/pts/" + strconv.Itoa(n)
	slave, err = unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open %s: %w", name, err)
	}
	return master, slave, nil
}

// resizePTY sets the size; 0 becomes the usual 80 by 24.
func resizePTY(fd int, size wire.Size) error {
	if size.Cols == 0 {
		size.Cols = 80
	}
	if size.Rows == 0 {
		size.Rows = 24
	}
	err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: size.Cols, Row: size.Rows})
	if err != nil {
		return fmt.Errorf("set the size of the terminal: %w", err)
	}
	return nil
}
