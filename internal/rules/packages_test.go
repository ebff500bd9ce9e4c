// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/opencomputer/oc"

// goList runs go list in the root of the module and gives the lines it prints.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = load(t).root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.Fields(string(out))
}

// TestAgentDependencies holds what is linked into the agent, which runs in every
// sandbox and cannot be upgraded in a checkpoint: the standard library, x/sys
// and its own packages.
func TestAgentDependencies(t *testing.T) {
	t.Parallel()
	root := load(t).root
	if _, err := os.Stat(filepath.Join(root, "cmd", "oc-agent")); err != nil {
		t.Fatalf("no agent to check: %v", err)
	}
	allowed := []string{module + "/cmd/oc-agent", module + "/internal/agent", "golang.org/x/sys"}
	for _, dep := range goList(t, "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/oc-agent") {
		if !below(dep, allowed) {
			t.Errorf("the agent links in %s: it may have the standard library, golang.org/x/sys and internal/agent", dep)
		}
	}
	heavy := map[string]string{
		"net/http":     "megabytes in every sandbox; the agent speaks packets on its stdin",
		"net":          "a resolver and a poller that a restore would find in any state",
		"database/sql": "the agent keeps nothing",
	}
	for _, dep := range goList(t, "-deps", "./cmd/oc-agent") {
		if why := heavy[dep]; why != "" {
			t.Errorf("the agent links in %s: %s", dep, why)
		}
	}
}

// TestClientDependencies holds what oc itself links in: it starts for each of its
// commands, and all packages are initialised then.
func TestClientDependencies(t *testing.T) {
	t.Parallel()
	var allowed []string
	for _, name := range []string{
		"cmd/oc", "client", "internal/cli", "internal/buildinfo", "internal/durable", "internal/fault", "internal/nodebin", "internal/store/seal",
	} {
		allowed = append(allowed, module+"/"+name)
	}
	others := []string{"github.com/coder/websocket", "github.com/spf13/cobra", "github.com/spf13/pflag", "golang.org/x/sys", "golang.org/x/term"}
	for _, dep := range goList(t, "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/oc") {
		if !below(dep, append(allowed, others...)) {
			t.Errorf("oc links in %s: what is not a command of a client's belongs to cmd/oc-node", dep)
		}
	}
}

// below tells whether a package is one of, or inside one of, the roots.
func below(pkg string, roots []string) bool {
	for _, r := range roots {
		if pkg == r || strings.HasPrefix(pkg, r+"/") {
			return true
		}
	}
	return false
}

// TestEveryPackageHasASuite keeps a new package from being tested by nobody:
// tools/suites has to name each package with code exactly once.
func TestEveryPackageHasASuite(t *testing.T) {
	t.Parallel()
	tr := load(t)
	text, err := os.ReadFile(filepath.Join(tr.root, "tools", "suites"))
	if err != nil {
		t.Fatal(err)
	}
	suites := map[string][]string{} // by pattern
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) < 3 || (fields[1] != "race" && fields[1] != "plain") {
			t.Errorf("tools/suites: %q is not NAME race|plain PATTERN...", line)
			continue
		}
		for _, pattern := range fields[2:] {
			suites[pattern] = append(suites[pattern], fields[0])
		}
	}
	for dir := range tr.packages() {
		if dir == "tools" || strings.HasPrefix(dir, "tools/") {
			continue // a module of its own
		}
		var in []string
		for pattern, names := range suites {
			if matches(pattern, dir) {
				in = append(in, names...)
			}
		}
		if len(in) != 1 {
			t.Errorf("package %s is in %d suites %v of tools/suites, want one", dir, len(in), in)
		}
	}
}

// matches tells whether a package pattern of the go command covers a directory.
func matches(pattern, dir string) bool {
	pattern = strings.TrimPrefix(pattern, "./")
	if root, all := strings.CutSuffix(pattern, "/..."); all {
		return below(dir, []string{root})
	}
	return pattern == dir
}
