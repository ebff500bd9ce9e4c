// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper collects every process that ends below PID 1: the agent's own
// children, whose statuses it hands on, and orphans, whose it forgets.
//
// A status can not be lost or given to the wrong process: the reaper first only
// looks which process has ended, and takes the status under the lock that
// start holds from before the fork until the child is known. For the same
// reason a pid that is in children can not have been used again.
type reaper struct {
	mu       sync.Mutex
	children map[int]func(syscall.WaitStatus)

	started chan struct{} // there may be a child to wait for
}

func newReaper() *reaper {
	return &reaper{children: map[int]func(syscall.WaitStatus){}, started: make(chan struct{}, 1)}
}

// run reaps for ever.
func (r *reaper) run() {
	// Only looked at while there is no child at all: a process that was put
	// into the sandbox from outside may then be handed to PID 1.
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	for {
		pid, err := peekEnded()
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // no child
			select {
			case <-r.started:
			case <-sigchld:
			}
		default:
			r.reap(pid)
		}
	}
}

// peekEnded waits until a child has ended and tells which, leaving its status.
func peekEnded() (int, error) {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
	if err != nil {
		return 0, err
	}
	return siginfoPID(&info), nil
}

func (r *reaper) reap(pid int) {
	r.mu.Lock()
	var ws syscall.WaitStatus
	got, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
	onExit := r.children[pid]
	if got == pid {
		delete(r.children, pid)
	}
	r.mu.Unlock()
	if err == nil && got == pid && onExit != nil {
		go onExit(ws)
	}
}

// start forks and registers the child in one step. onExit is called once, in a
// goroutine of its own, after the child has ended.
func (r *reaper) start(fork func() (int, error), onExit func(syscall.WaitStatus)) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, err
	}
	r.children[pid] = onExit
	select {
	case r.started <- struct{}{}:
	default:
	}
	return pid, nil
}

// signalGroup sends a signal to the process group that the child leads. It
// gives ESRCH if the child has ended.
func (r *reaper) signalGroup(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] == nil {
		return syscall.ESRCH
	}
	return syscall.Kill(-pid, sig)
}

// siginfoPID reads si_pid, which x/sys leaves in the padding: on 64-bit Linux
// the union of siginfo_t begins 16 bytes in, with the pid for a SIGCHLD.
func siginfoPID(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}
