// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// ticker wakes every millisecond on a thread of its own and keeps the longest
// time between two wakings: what a process in the sandbox notices of a pause.
type ticker struct {
	stop    atomic.Bool
	longest chan time.Duration
}

func startTicker() *ticker {
	t := &ticker{longest: make(chan time.Duration, 1)}
	ready := make(chan struct{})
	go t.run(ready)
	<-ready
	return t
}

// run ticks until it is stopped. It sleeps by the system call: the runtime's own
// timers would measure its scheduler too.
func (t *ticker) run(ready chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const millisecond = int64(time.Millisecond)
	var longest time.Duration
	last := time.Now()
	close(ready)
	for !t.stop.Load() {
		ts := syscall.NsecToTimespec(millisecond)
		_ = syscall.Nanosleep(&ts, nil) // cut short by a signal: an early tick
		now := time.Now()
		longest = max(longest, now.Sub(last))
		last = now
	}
	t.longest <- longest
}

func (w *workload) tick() (string, error) {
	if w.ticker != nil {
		return "", errors.New("ticking already")
	}
	w.ticker = startTicker()
	return "ok", nil
}

func (w *workload) gap() (string, error) {
	if w.ticker == nil {
		return "", errors.New("not ticking")
	}
	w.ticker.stop.Store(true)
	longest := <-w.ticker.longest
	w.ticker = nil
	return strconv.FormatInt(longest.Microseconds(), 10), nil
}
