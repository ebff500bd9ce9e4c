// SPDX-License-Identifier: Apache-2.0

// Package proc identifies host processes over restarts of the server: by pid
// and start time, as /proc tells them. It knows nothing else.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// StartTime is when the process started, in clock ticks since boot (field 22
// of /proc/PID/stat, proc_pid_stat(5)). A zombie counts as gone.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	st, err := parseStat(b)
	if err == nil && (st.state == 'Z' || st.state == 'X') {
		err = os.ErrProcessDone
	}
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return st.start, nil
}

// stat is what we need of a stat line.
type stat struct {
	state  byte
	parent int
	start  uint64 // clock ticks since boot
}

// parseStat reads a line of /proc/PID/stat. Its second field, the name, may
// hold anything and ends with the last parenthesis.
func parseStat(line []byte) (st stat, err error) {
	f := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return st, errors.New("unexpected stat line")
	}
	st.state = f[0][0]
	if st.parent, err = strconv.Atoi(string(f[1])); err != nil {
		return st, fmt.Errorf("unexpected stat line: %w", err)
	}
	if st.start, err = strconv.ParseUint(string(f[19]), 10, 64); err != nil {
		return st, fmt.Errorf("unexpected stat line: %w", err)
	}
	return st, nil
}

// Alive tells whether the process of that pid and start time runs.
func Alive(pid int, start uint64) bool {
	s, err := StartTime(pid)
	return err == nil && s == start && pid > 0
}

// Exited gives a channel that is closed when the process has ended; where this
// process is its parent or reaper, it is taken from the process table. The
// watching ends with ctx, and the channel then stays open.
func Exited(ctx context.Context, pid int, start uint64) (<-chan struct{}, error) {
	done := make(chan struct{})
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: pidfd: %w", pid, err)
	}
	if err != nil || !Alive(pid, start) { // checked after the open: the pid may be another's by now
		if err == nil {
			_ = unix.Close(fd)
		}
		close(done)
		return done, nil
	}
	f := os.NewFile(uintptr(fd), "pidfd") // not blocking: waits in the runtime's poller, not in a thread
	conn, err := f.SyscallConn()
	if err == nil {
		err = f.SetReadDeadline(time.Time{}) // fails where the kernel cannot poll it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("process %d: pidfd: %w", pid, err), f.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }) // closed already is as good
	go func() {
		defer f.Close()
		defer stop()
		if conn.Read(ended) == nil { // an error is the end of ctx
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			close(done)
		}
	}()
	return done, nil
}

// ended tells whether a pidfd's process has ended: it is readable then.
func ended(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// SetOOMScore sets oom_score_adj, -1000 (never killed) to 1000.
func SetOOMScore(pid, score int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
}

// All are the pids of the processes there are now, none where /proc cannot be
// read.
func All() (pids []int) {
	es, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range es {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Descendants are the children of a process, their children and so on, at most
// limit of them.
func Descendants(pid, limit int) (pids []int) {
	children := map[int][]int{}
	for _, child := range All() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil {
			continue // gone meanwhile
		}
		if st, err := parseStat(b); err == nil {
			children[st.parent] = append(children[st.parent], child)
		}
	}
	for next := children[pid]; len(next) > 0 && len(pids) < limit; next = next[1:] {
		pids = append(pids, next[0])
		next = append(next, children[next[0]]...)
	}
	return pids
}

// AnonymousMemory is how much memory of its own a process has, in bytes: RssAnon
// of /proc/PID/status (proc_pid_status(5)); 0 if unknown.
func AnonymousMemory(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(b, []byte("\nRssAnon:"))
	f := bytes.Fields(rest[:max(0, bytes.IndexByte(rest, '\n'))])
	if len(f) == 0 {
		return 0
	}
	kb, err := strconv.ParseInt(string(f[0]), 10, 64)
	if err != nil || kb < 0 {
		return 0
	}
	return kb << 10
}
