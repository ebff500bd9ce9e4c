// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
)

// standbys is how many helpers wait.
const standbys = 3

// helpersOf are the helpers that run from a build below dir, and what each is
// by its command line.
func helpersOf(dir string) map[int]string {
	out := map[int]string{}
	for _, pid := range proc.All() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || !strings.HasPrefix(exe, dir) {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if args := strings.Split(string(line), "\x00"); err == nil && len(args) > 2 && args[1] == "engine-helper" {
			out[pid] = args[2]
		}
	}
	return out
}

func count(helpers map[int]string, kind string) (n int) {
	for _, k := range helpers {
		if k == kind {
			n++
		}
	}
	return n
}

// A helper that waits becomes the one that is wanted, also by name, and others
// take its place; a closed driver leaves none.
func TestStandby(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := hostIn(t, dir)
	defer d.Close()
	waiting := func() map[int]string {
		var hs map[int]string
		enginetest.Eventually(t, "the helpers wait", func() bool {
			hs = helpersOf(dir)
			return count(hs, "standby") == standbys
		})
		return hs
	}
	waiting()
	spec := enginetest.Spec(t, enginetest.Shape())
	h, guest := enginetest.Pair(t)
	p, err := d.Start(t.Context(), spec, guest)
	if err != nil {
		t.Fatal(err)
	}
	g := host.Adopt(t, p, spec, h)
	before := waiting()
	c, held, err := d.CaptureHeld(t.Context(), p, inMemory, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	var capturing []int
	for pid, kind := range helpersOf(dir) {
		if kind == "capture" && before[pid] == "standby" {
			capturing = append(capturing, pid)
		}
	}
	if len(capturing) != 1 {
		t.Errorf("the capturing helpers that had waited: %v", capturing)
	}
	waiting()
	if err := held.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Must(t, "true")
	d.Close()
	enginetest.Eventually(t, "no helper is left", func() bool { return len(helpersOf(dir)) == 0 })
	if _, _, err := d.CaptureHeld(t.Context(), p, inMemory, time.Minute); err == nil {
		t.Error("a closed driver captured")
	}
}

func started(t *testing.T, pid int) uint64 {
	t.Helper()
	start, err := proc.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	return start
}

// A standby that died is passed over.
func TestDeadStandby(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := hostIn(t, dir)
	defer d.Close()
	enginetest.Eventually(t, "the helpers wait", func() bool { return count(helpersOf(dir), "standby") == standbys })
	for pid := range helpersOf(dir) {
		ended, err := proc.Exited(t.Context(), pid, started(t, pid)) // a dying one still takes requests
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-ended
	}
	spec := enginetest.Spec(t, enginetest.Shape())
	h, guest := enginetest.Pair(t)
	p, err := d.Start(t.Context(), spec, guest)
	if err != nil {
		t.Fatal(err)
	}
	host.Adopt(t, p, spec, h).Must(t, "true")
}
