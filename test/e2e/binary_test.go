// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencomputer/oc/test/harness"
)

// TestOneBinaryIsEverything uses the installed file for what the program inside
// of it does.
func TestOneBinaryIsEverything(t *testing.T) {
	t.Parallel()
	binary, err := harness.Binary()
	must(t, err)
	real, err := filepath.EvalSymlinks(binary)
	must(t, err)
	if unit := oc(t, shared, "install-service", "--print"); !strings.Contains(unit, "\nExecStart=\""+real+"\" serve ") {
		t.Errorf("the service does not start %s:\n%s", real, unit)
	}
	for _, help := range [][]string{{"--help"}, {"help", "exec"}, {"help", "serve"}, {"exec", "--help"}} {
		text := oc(t, shared, help...)
		if want := help[len(help)-1]; !strings.Contains(text, "Usage:") || help[0] == "help" && !strings.Contains(text, "oc "+want) {
			t.Errorf("oc %s:\n%s", strings.Join(help, " "), text)
		}
	}
	if text := oc(t, shared, "--help"); !strings.Contains(text, "install-service") || !strings.Contains(text, "checkpoint") {
		t.Errorf("the help lacks commands:\n%s", text)
	}
	c := exec.CommandContext(t.Context(), binary)
	c.Args = []string{"runsc", "--version"}
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "oc-engine-") {
		t.Errorf("as runsc: %v\n%s", err, out)
	}
}
