// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

const (
	// strayPatience is how long a stray helper may take to end by itself.
	strayPatience = 5 * time.Second
	strayPoll     = 10 * time.Millisecond
)

// endStrays ends the helpers of an earlier server, which nobody waits for: one
// that hangs would keep its engine frozen. They are asked first, and a stopped
// one is let go on, because a capture of an earlier build that is cut off at the
// wrong moment costs the engine. Who restores stays: sandboxes load from it. It must run before
// this driver starts helpers of its own.
func (d *Driver) endStrays() {
	strays := strayHelpers(d.cfg.BuildsDir)
	for _, pid := range strays {
		_ = unix.Kill(pid, unix.SIGTERM) // gone is as good, here and below
		_ = unix.Kill(pid, unix.SIGCONT)
	}
	for deadline := time.Now().Add(strayPatience); len(strays) > 0 && time.Now().Before(deadline); {
		time.Sleep(strayPoll)
		strays = strayHelpers(d.cfg.BuildsDir)
	}
	for _, pid := range strays {
		d.cfg.Log.Warn("a helper of an earlier server does not end and is killed", "pid", pid)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// strayHelpers are the helpers that run from one of the kept builds below dir,
// but for those that restore and their pagers. A pager sees the end of its
// helper, unless it hangs: when there is none that restores, it is one of them.
func strayHelpers(dir string) (pids []int) {
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
			pids = append(pids, pid)
		case wire.VerbPager:
			pagers = append(pagers, pid)
		case wire.VerbRestore:
			restoring = true
		}
	}
	if !restoring {
		pids = append(pids, pagers...)
	}
	return pids
}
