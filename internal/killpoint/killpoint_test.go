// SPDX-License-Identifier: Apache-2.0

package killpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// reach in the environment makes the test binary a process that gets to all points.
const reach = "OC_TEST_REACH_POINTS"

func TestMain(m *testing.M) {
	if os.Getenv(reach) != "" {
		for _, p := range All() {
			Here(p)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A process ends at the point that its file holds, as killed; without one it passes
// them all.
func TestHere(t *testing.T) {
	t.Parallel()
	for _, p := range append(All(), "", "unknown") {
		file := filepath.Join(t.TempDir(), "point")
		if p != "" {
			if err := os.WriteFile(file, []byte(p), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), reach+"=1", Env+"="+file)
		_ = c.Run() // its state is looked at
		status, ok := c.ProcessState.Sys().(syscall.WaitStatus)
		if killed := strings.Contains(string(p), ":"); !ok || status.Signaled() != killed || killed && status.Signal() != syscall.SIGKILL {
			t.Errorf("at %q it ended with %v", p, c.ProcessState)
		}
	}
}

// The verb before the colon is what a test does to get to a point.
func TestNames(t *testing.T) {
	t.Parallel()
	seen := map[Point]bool{}
	for _, p := range All() {
		verb, after, ok := strings.Cut(string(p), ": ")
		if !ok || verb == "" || after == "" || seen[p] {
			t.Errorf("%q", p)
		}
		seen[p] = true
	}
}
