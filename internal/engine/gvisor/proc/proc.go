// SPDX-License-Identifier: Apache-2.0

// Package proc identifies host processes over restarts of the server: by pid
// and start time, as /proc tells them. It knows nothing else.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// StartTime is when the process started, in clock ticks since boot (field 22
// of /proc/PID/stat, proc_pid_stat(5)). A zombie counts as gone.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	// The second field may contain anything but ends with the last ')'.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, fmt.Errorf("process %d: unexpected stat line", pid)
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("process %d: unexpected stat line", pid)
	}
	if f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// Alive tells whether the process of that pid and start time runs.
func Alive(pid int, start uint64) bool {
	s, err := StartTime(pid)
	return err == nil && s == start && pid > 0
}

// Exited gives a channel that is closed when the process has ended. Where this
// process is its parent or reaper, it is taken from the process table.
func Exited(pid int, start uint64) (<-chan struct{}, error) {
	done := make(chan struct{})
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil || !Alive(pid, start) { // checked after the open: the pid may be another's by now
		if err == nil {
			_ = unix.Close(fd)
		} else if !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("process %d: pidfd: %w", pid, err)
		}
		close(done)
		return done, nil
	}
	go func() {
		defer close(done)
		defer unix.Close(fd)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}()
	return done, nil
}

// SetOOMScore sets oom_score_adj, -1000 (never killed) to 1000.
func SetOOMScore(pid, score int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
}
