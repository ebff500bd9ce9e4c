// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencomputer/oc/client"

	"github.com/opencomputer/oc/test/harness"
)

// script runs a shell script of testdata as a user would, with oc in the PATH,
// and gives what it printed.
func script(t *testing.T, s *harness.Server, file string, env ...string) string {
	t.Helper()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(bin, "oc")); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("jq"); err != nil {
		t.Fatal("jq is missing: apt-get install jq")
	}
	c := exec.CommandContext(t.Context(), "bash", "-eu", testdata(t, file))
	c.Env = append(s.Environ(), env...)
	for i, kv := range c.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			c.Env[i] = "PATH=" + bin + ":" + path
		}
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", file, err, out)
	}
	return string(out)
}

// matches compares lines with patterns, in which # stands for the digits of an id.
func matches(t *testing.T, text string, patterns ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != len(patterns) {
		t.Fatalf("%d lines instead of %d:\n%s", len(lines), len(patterns), text)
	}
	for i, p := range patterns {
		p = strings.ReplaceAll(p, "#", "[0-9a-f]{8}")
		if !regexp.MustCompile("^" + p + "$").MatchString(lines[i]) {
			t.Errorf("line %d is %q, not %q", i+1, lines[i], p)
		}
	}
}

// TestCheckpointPageRunsWordForWord runs the page's examples as scripts and
// compares what they print.
func TestCheckpointPageRunsWordForWord(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	for _, name := range []string{"run-migration.sh", "experiment-a.sh", "experiment-b.sh"} {
		b.push(name)
	}
	b.sh("echo precious >data.txt; mkdir -p state; echo 1 >state/schema")

	matches(t, script(t, shared, "page-risky.sh", "SANDBOX="+b.id),
		`Checkpoint created: cp-# \(status: ready\)`,
		`Name: before-migration`,
		`migrating`,
		`the migration broke`,
		`Sandbox sb-# restored to checkpoint cp-#`,
		`precious`,
		`1`)

	for _, cp := range asJSON[[]client.Checkpoint](t, shared, "checkpoint", "list", b.id) {
		if cp.Automatic { // what the restore replaced; the page does not know of it
			oc(t, shared, "checkpoint", "delete", b.id, cp.ID)
		}
	}

	out := script(t, shared, "page-fork.sh", "SANDBOX="+b.id)
	for _, id := range regexp.MustCompile(`fork (sb-[0-9a-f]{8})`).FindAllStringSubmatch(out, -1) {
		adopt(t, shared, id[1])
	}
	matches(t, out,
		`Checkpoint created: cp-# \(status: ready\)`,
		`Name: my-checkpoint`,
		`ID +NAME +STATUS +SIZE +CREATED`,
		`cp-#  my-checkpoint +ready +\d+\.\d MB +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`,
		`cp-#  before-migration +ready +\d+\.\d MB +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`,
		`fork sb-#`,
		`fork sb-#`,
		`experiment a sees precious`,
		`experiment b sees precious`,
		`a`,
		`b`,
		`Created sandbox sb-# from checkpoint \(status: running\)`,
		`Sandbox sb-# killed\.`,
		`Checkpoint cp-# deleted\.`,
		`Checkpoint cp-# deleted\.`,
		`No checkpoints found\.`)
}
