// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"errors"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
)

var (
	errCaptureDeadline = errors.New("the deadline of the capture passed")
	errReadyDeadline   = errors.New("the deadline of what comes before the freeze passed: its memory loads too slowly, or its engine hangs")
)

// stages are how long the two parts of a capture may take. They are bounded one by
// one, so that a store which is slow to give what is still to be loaded takes nothing
// of the time in which the engine has to do its work.
type stages struct {
	ready  time.Duration // until all is loaded and made ready
	freeze time.Duration // from there until the state is copied
	before func() error  // is called between them
}

// stagesOf are those of a capture into an arena.
func stagesOf(p engine.Process, a *arena, opts engine.CaptureOptions) stages {
	work := captureTime(a.estimate, proc.AnonymousMemory(p.PID))
	st := stages{ready: work + loadTime(a.missing), freeze: work, before: opts.BeforeFreeze}
	if st.before == nil {
		st.before = func() error { return nil }
	}
	return st
}

// bound gives a context that ends, with the reason, when a stage takes too long.
// ready is to be called between the stages; what it waits for counts for neither.
func (st stages) bound(ctx context.Context) (_ context.Context, ready func() error, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	limit := time.AfterFunc(st.ready, func() { end(errReadyDeadline) })
	ready = func() error {
		if !limit.Stop() {
			return errReadyDeadline
		}
		if err := st.before(); err != nil {
			return err
		}
		limit = time.AfterFunc(st.freeze, func() { end(errCaptureDeadline) })
		return context.Cause(ctx)
	}
	return ctx, ready, func() {
		limit.Stop()
		end(nil)
	}
}

// captureTime is how long a capture may take. It grows with the work: the bytes
// of the guest, and its files, of which there are as many as the engine has
// memory for. A file is 4 KB of it at least, and up to 45 µs of the pause; the
// rest is for busy machines.
func captureTime(bytes, engineMemory int64) time.Duration {
	const base, perGiB, perFile, fileBytes = 20 * time.Second, 10 * time.Second, 200 * time.Microsecond, 4 << 10
	return base + time.Duration(bytes>>20)*perGiB/1024 + time.Duration(engineMemory/fileBytes)*perFile
}

// loadTime is how long the rest of a generation's memory may take to be loaded at
// full rate. A store that gives less than 4 MiB a second is as good as none: nobody
// waits for a checkpoint for longer than four minutes a gigabyte.
func loadTime(bytes int64) time.Duration {
	const perMiB = time.Second / 4
	return time.Duration(bytes>>20) * perMiB
}
