// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

const (
	// strayPatience is how long a stray helper may take to end by itself.
	strayPatience = 5 * time.Second
	// holdPatience is how long one may that has an engine frozen, which it lets go on
	// when it has copied its state.
	holdPatience = 20 * time.Second
	strayPoll    = 10 * time.Millisecond
)

// endStrays ends the helpers of an earlier server, which nobody waits for: one
// that hangs would keep its engine frozen. They are asked first, and a stopped
// one is let go on, because a capture of an earlier build that is cut off at the
// wrong moment costs the engine. Watchdogs are killed only when everybody else has
// ended and they still have not let their engine go on. Who restores stays: sandboxes
// load from it. It must run before this driver starts helpers of its own.
//
// It gives the marks of the captures that there were: see endHolds.
func (d *Driver) endStrays() (marks []*os.File) {
	began := time.Now()
	strays := strayHelpers(d.cfg.BuildsDir)
	for pid, verb := range strays {
		if m := markOf(pid, verb); m != nil {
			marks = append(marks, m)
		}
		if verb != wire.VerbWatch { // an earlier build's takes it for a dismissal
			_ = unix.Kill(pid, unix.SIGTERM) // gone is as good, here and below
		}
		_ = unix.Kill(pid, unix.SIGCONT)
	}
	await := func(enough func() bool) {
		for strays = strayHelpers(d.cfg.BuildsDir); len(strays) > 0 && !enough(); strays = strayHelpers(d.cfg.BuildsDir) {
			time.Sleep(strayPoll)
		}
	}
	kill := func(watchdogs bool) {
		for pid, verb := range strays {
			if watchdogs == (verb == wire.VerbWatch) {
				d.cfg.Log.Warn("a helper of an earlier server does not end and is killed", "pid", pid, "verb", verb)
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	await(func() bool {
		took := time.Since(began)
		return took > holdPatience || took > strayPatience && !slices.ContainsFunc(marks, marked)
	})
	for _, watchdogs := range []bool{false, true} {
		kill(watchdogs)
		killed := time.Now()
		await(func() bool { return time.Since(killed) > strayPatience })
	}
	return marks
}

// markOf opens the mark that a helper has, nil where it has none.
func markOf(pid int, verb string) *os.File {
	switch verb {
	case wire.VerbCapture:
		return wire.FindMark(pid, wire.FDMark)
	case wire.VerbWatch:
		return wire.FindMark(pid, wire.FDWatchMark)
	}
	return nil
}

// marked tells whether a mark says that its engine is paused.
func marked(mark *os.File) bool {
	paused, err := wire.IsPaused(mark)
	return err == nil && paused
}

// endHolds lets the engines go on that are marked as paused after endStrays: all who
// would have done it were killed. It closes the marks.
func (d *Driver) endHolds(marks []*os.File) {
	for _, m := range marks {
		if marked(m) { // once: a helper and its watchdog share one
			if err := d.endHold(m); err != nil {
				d.cfg.Log.Error("letting an engine go on that an earlier server held", "error", err)
			}
		}
		_ = m.Close() // memory
	}
}

func (d *Driver) endHold(mark *os.File) error {
	p, err := wire.Marked(mark)
	if err != nil {
		return err
	}
	return d.release(context.Background(), p, mark)
}

// strayHelpers are the helpers that run from one of the kept builds below dir,
// by pid with what each does, but for those that restore and their pagers. A pager sees the end of its
// helper, unless it hangs: when there is none that restores, it is one of them.
func strayHelpers(dir string) map[int]string {
	strays := map[int]string{}
	var pagers []int
	restoring := false
	for _, pid := range proc.All() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || !strings.HasPrefix(exe, filepath.Clean(dir)+"/") {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		args := bytes.Split(line, []byte{0})
		if len(args) < 3 || string(args[1]) != HelperCommand {
			continue
		}
		switch verb := string(args[2]); verb {
		case wire.VerbPrepare, wire.VerbCapture, wire.Staying, wire.VerbPause, wire.VerbResume, wire.VerbWatch, wire.VerbFeatures:
			strays[pid] = verb
		case wire.VerbPager:
			pagers = append(pagers, pid)
		case wire.VerbRestore:
			restoring = true
		}
	}
	if !restoring {
		for _, pid := range pagers {
			strays[pid] = wire.VerbPager
		}
	}
	return strays
}
