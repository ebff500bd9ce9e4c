// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/cgroup"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// An answer is there before the end of its helper, for which end waits.
func TestAnswerBeforeTheEnd(t *testing.T) {
	t.Parallel()
	const build = "a-build"
	dir := t.TempDir()
	path := install(t, dir, build, `#!/bin/sh
read request
echo $$ >"$0.pid"
echo '{"event":"done","sizes":{"State":7}}'
while ! test -e "$0.end"; do sleep 0.01; done
`)
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

// A call to a helper that hangs ends by itself, and says what hung.
func TestCallHasADeadline(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	install(t, dir, "a-build", "#!/bin/sh\nexec sleep 1000\n")
	d := &Driver{callTime: 300 * time.Millisecond, helpers: newHelpers(dir, "another", func(int) error { return nil })}
	defer d.helpers.close()
	_, err := d.call(t.Context(), "a-build", wire.Request{Verb: wire.VerbPrepare})
	if err == nil || err.Error() != "engine: prepare was broken off: it hangs: no answer within 300ms" {
		t.Errorf("it ended with: %v", err)
	}
}

// A helper that hangs while it makes an engine process goes with all that it started.
func TestHungPrepareLeavesNothing(t *testing.T) {
	t.Parallel()
	groups, err := cgroup.Detect("opencomputer-test-" + strings.ToLower(rand.Text()[:8]))
	if err != nil {
		t.Fatal(err)
	}
	defer groups.RemoveParent()
	const generation = "gn-00000001"
	dir := t.TempDir()
	install(t, dir, "a-build", "#!/bin/sh\nread request\nfor f in "+strings.Join(groups.ProcsFiles(generation), " ")+
		"; do echo $$ >$f; done\nsleep 1000 &\nwait\n")
	d := &Driver{
		cfg:    Config{RunDir: filepath.Join(dir, "run"), DiskDir: filepath.Join(dir, "disks")},
		groups: groups, callTime: time.Second, helpers: newHelpers(dir, "another", func(int) error { return nil }),
	}
	defer d.helpers.close()
	_, err = d.prepare(t.Context(), "a-build", engine.Spec{Generation: generation, Shape: engine.Shape{CPUs: 1, MemoryBytes: 1 << 28, PidsMax: 10}}, os.Stdin, true)
	if err == nil || !strings.Contains(err.Error(), "prepare") || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("it ended with: %v", err)
	}
	left, err := groups.List()
	if err != nil || len(left) > 0 {
		t.Errorf("groups are left: %v, %v", left, err)
	}
	if _, err := os.Stat(d.dir(generation)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory is left: %v", err)
	}
}

// install makes a script the kept build of that name, and gives its file.
func install(t *testing.T, dir, build, script string) (path string) {
	t.Helper()
	path = buildPath(dir, build)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	// Not written by this process: a child that is being started by another test
	// would have the file open for writing, so that it could not be executed.
	c := exec.CommandContext(t.Context(), "install", "-m", "700", "/dev/stdin", path)
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}
