// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// firstOwn is above the numbers of the descriptors that are handed over, which stay
// taken: the next request's come to the same places.
const firstOwn = wire.FDState + wire.MaxFiles

// received gives copies of descriptors that were handed over, to be closed.
func received(fds ...int) (files []*os.File, err error) {
	for _, fd := range fds {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstOwn)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("helper: descriptor %d: %w", fd, err)
		}
		files = append(files, os.NewFile(uintptr(n), fmt.Sprint("descriptor ", fd)))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // memory
	}
}

// stay serves the next captures, until one fails, the engine ends or the server has
// had enough. What has failed was told, and whoever comes next finds this process
// gone.
func (k *capturer) stay() error {
	defer yield() // to unmap a gigabyte takes 30 to 80 ms of CPU time, when its successor is to answer
	for {
		if err := letGo(); err != nil {
			return nil
		}
		rename(wire.Staying)
		if k.awaitNext() != nil {
			return nil
		}
		req, err := readLine[wire.Request](k.in)
		if err != nil || req.Verb != wire.VerbCapture || len(req.Targets) != 1 || req.Targets[0] != k.target {
			return nil
		}
		k.out.send(wire.Event{Event: wire.EventBegun})
		if err := k.capture(req); err != nil {
			return err
		}
	}
}

// yield has this process' end take less of the CPUs from others. It does what it can.
func yield() {
	const lower = 5 // a third of what others have: who ends the sandbox waits for it
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, lower) // of a thread (setpriority(2), "C library/kernel differences")
		}
	}
}

// letGo gives back what the last request brought: its arena is the server's alone.
func letGo() error {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("helper: %w", err)
	}
	for fd := wire.FDState; fd < wire.FDNext; fd++ {
		if err := unix.Dup3(null, fd, unix.O_CLOEXEC); err != nil {
			return errors.Join(fmt.Errorf("helper: %w", err), unix.Close(null))
		}
	}
	return unix.Close(null)
}

// How long after a capture the next one is made ready, and what it took is given
// back: those who wait for the capture want the CPUs first.
const (
	aheadDelay = 200 * time.Millisecond
	tidyDelay  = 2 * time.Second
)

// awaitNext waits until this process is wanted again, as a standby does, and fails
// when that will not be: it must not keep the memory of an engine that has ended.
func (k *capturer) awaitNext() error {
	engine, err := unix.PidfdOpen(k.target.PID, 0)
	if err != nil {
		return fmt.Errorf("helper: %w", err)
	}
	defer unix.Close(engine)
	if !proc.Alive(k.target.PID, k.target.StartTime) {
		return errDismissed
	}
	fds := []unix.PollFd{{Fd: int32(engine), Events: unix.POLLIN}, {Fd: wire.FDNext, Events: unix.POLLIN}}
	stop := func() {}
	defer func() { stop() }()
	for wait := aheadDelay; ; {
		n, err := unix.Poll(fds, int(wait.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("helper: %w", err)
		case n == 0 && wait == aheadDelay:
			if k.memory != nil {
				stop = ahead(k.target, k.memory)
			}
			wait = tidyDelay
		case n == 0:
			debug.FreeOSMemory() // the base is as large as the guest's memory makes it
			wait = -time.Millisecond
		case fds[0].Revents != 0:
			return errDismissed
		default:
			return standby(wire.FDNext)
		}
	}
}
