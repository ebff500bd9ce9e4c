// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencomputer/oc/test/harness"
)

// groupRoots are the places where a control group of a server may be, of
// version 1 and 2.
var groupRoots = []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"}

// newGroup makes a control group and gives the files to join it by.
func newGroup(t *testing.T) (procs []string) {
	t.Helper()
	name := "oc-e2e-" + strings.ToLower(filepath.Base(t.TempDir())) + strconv.Itoa(os.Getpid())
	for _, root := range groupRoots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(root, name)
		must(t, os.Mkdir(dir, 0o755))
		t.Cleanup(func() {
			await(t, "the control group is empty", func() bool { return os.Remove(dir) == nil })
		})
		procs = append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	if len(procs) == 0 {
		t.Fatal("no control groups are mounted: mount cgroup2 on /sys/fs/cgroup")
	}
	return procs
}

// members are the processes in a group.
func members(t *testing.T, procs []string) (pids []int) {
	t.Helper()
	for _, file := range procs {
		b, err := os.ReadFile(file)
		must(t, err)
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			must(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestAllOfTheServersControlGroupIsEnded is what a service manager does that
// ends a service with everything in its control group: sandboxes, one that is
// still being loaded among them, and the keeper live on.
func TestAllOfTheServersControlGroupIsEnded(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"load-rate": 20})
	must(t, s.Down(t.Context()))
	await(t, "the server is down", func() bool { return len(running(s, "serve")) == 0 })
	for _, pid := range running(s, "keeper") { // one that this server starts
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		await(t, "the first keeper is gone", func() bool { return len(running(s, "keeper")) == 0 })
	}
	procs := newGroup(t)
	b := upIn(t, s, procs)
	b.count()
	b.heap(150, 17)
	sum := b.heapSum()
	clone := spawn(t, s, b.checkpoint("source"))
	if s.Loading() == 0 {
		t.Fatal("the spawn is loaded already")
	}
	keeper := running(s, "keeper")
	for pids := members(t, procs); len(pids) > 0; pids = members(t, procs) {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone is as good
		}
	}
	await(t, "the server is gone", func() bool { return len(running(s, "serve")) == 0 })
	if now := running(s, "keeper"); len(keeper) != 1 || len(now) != 1 || now[0] != keeper[0] {
		t.Errorf("keepers %v, before %v", now, keeper)
	}
	if s.Loading() == 0 {
		t.Error("no pager is left")
	}
	must(t, s.Up(t.Context()))
	for _, b := range []box{b, clone} {
		b.countOn(10)
		if got := b.heapSum(); got != sum {
			t.Errorf("the heap of %s is %s, not %s", b.id, got, sum)
		}
	}
}

// upIn starts a server in a control group and makes a sandbox.
func upIn(t *testing.T, s *harness.Server, procs []string) box {
	t.Helper()
	c := s.Command(t.Context(), "up")
	script := ""
	for _, file := range procs {
		script += "echo $$ >" + file + " && "
	}
	c.Args = append([]string{"/bin/sh", "-c", script + `exec "$@"`, "sh", c.Path}, c.Args[1:]...)
	c.Path = "/bin/sh"
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if servers := running(s, "serve"); len(servers) != 1 || len(members(t, procs)) == 0 {
		t.Fatalf("%v in the control group, not the server %v", members(t, procs), servers)
	}
	return create(t, s)
}
