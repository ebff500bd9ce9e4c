// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// An answer is there before the end of its helper, for which end waits.
func TestAnswerBeforeTheEnd(t *testing.T) {
	t.Parallel()
	const build = "a-build"
	dir := t.TempDir()
	path := buildPath(dir, build)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	helper := `#!/bin/sh
read request
echo $$ >"$0.pid"
echo '{"event":"done","sizes":{"State":7}}'
while ! test -e "$0.end"; do sleep 0.01; done
`
	// Not written by this process: a child that is being started by another test
	// would have the file open for writing, so that it could not be executed.
	c := exec.CommandContext(t.Context(), "install", "-m", "700", "/dev/stdin", path)
	c.Stdin = strings.NewReader(helper)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := &Driver{helpers: newHelpers(dir, "another", func(int) error { return nil })}
	defer d.helpers.close()
	ev, end, err := d.ask(t.Context(), build, wire.Request{Verb: wire.VerbCapture})
	if err != nil || ev.Sizes.State != 7 {
		t.Fatalf("%+v, %v", ev, err)
	}
	text, err := os.ReadFile(path + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	start, err := proc.StartTime(pid)
	if err != nil {
		t.Fatal("it ended before it was let go: ", err)
	}
	if err := os.WriteFile(path+".end", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	end()
	if proc.Alive(pid, start) {
		t.Error("it still runs")
	}
}
