// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// control makes empty control files, as a kernel would with the group.
func control(t *testing.T, dir string, files ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// written gives the control files below dir that have a content.
func written(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if rel, _ := filepath.Rel(dir, path); len(b) > 0 {
			out[rel] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fakeV1 is a v1 hierarchy below a fresh directory, and its mount table.
func fakeV1(t *testing.T, group string, swap bool) (dir string, mounts []string) {
	t.Helper()
	dir = t.TempDir()
	memory := []string{"memory.limit_in_bytes", "cgroup.procs"}
	if swap {
		memory = append(memory, "memory.memsw.limit_in_bytes")
	}
	control(t, filepath.Join(dir, "memory", group), memory...)
	control(t, filepath.Join(dir, "cpu,cpuacct", group), "cpu.cfs_quota_us", "cgroup.procs")
	control(t, filepath.Join(dir, "pids", group), "pids.max", "cgroup.procs")
	for _, c := range []string{"memory", "cpu,cpuacct", "pids"} {
		mounts = append(mounts, fmt.Sprintf("cgroup %s/%s cgroup rw,nosuid,%s 0 0", dir, c, c))
	}
	return dir, append(mounts, "cgroup "+dir+"/systemd cgroup rw,name=systemd 0 0")
}

func fakeV2(t *testing.T, group string, swap bool) (dir string, mounts []string) {
	t.Helper()
	dir = t.TempDir()
	for d := group; d != "."; {
		d = filepath.Dir(d)
		control(t, filepath.Join(dir, d), "cgroup.subtree_control")
	}
	files := []string{"memory.max", "memory.oom.group", "cpu.max", "pids.max", "cgroup.procs"}
	if swap {
		files = append(files, "memory.swap.max")
	}
	control(t, filepath.Join(dir, group), files...)
	return dir, []string{"proc /proc proc rw 0 0", "cgroup2 " + dir + " cgroup2 rw,nosuid 0 0"}
}

func TestWhatIsWritten(t *testing.T) {
	t.Parallel()
	const enabled = "+memory +cpu +pids"
	parents := map[string]string{
		"cgroup.subtree_control": enabled, "oc/cgroup.subtree_control": enabled, "oc/x/cgroup.subtree_control": enabled,
	}
	full := Limits{MemoryBytes: 1 << 30, CPUs: 3, Pids: 700}
	for _, tt := range []struct {
		name   string
		fake   func(*testing.T, string, bool) (string, []string)
		swap   bool
		limits Limits
		want   map[string]string
	}{
		{"v1", fakeV1, true, full, map[string]string{
			"memory/oc/x/gn-1/memory.limit_in_bytes":       "1073741824",
			"memory/oc/x/gn-1/memory.memsw.limit_in_bytes": "1073741824",
			"cpu,cpuacct/oc/x/gn-1/cpu.cfs_quota_us":       "300000",
			"pids/oc/x/gn-1/pids.max":                      "700",
		}},
		{"v1 without swap accounting", fakeV1, false, Limits{MemoryBytes: 4096}, map[string]string{
			"memory/oc/x/gn-1/memory.limit_in_bytes": "4096",
		}},
		{"v1 without limits", fakeV1, true, Limits{}, map[string]string{}},
		{"v2", fakeV2, true, full, map[string]string{
			"oc/x/gn-1/memory.max": "1073741824", "oc/x/gn-1/memory.oom.group": "0", "oc/x/gn-1/memory.swap.max": "0",
			"oc/x/gn-1/cpu.max": "300000 100000", "oc/x/gn-1/pids.max": "700",
		}},
		{"v2 without swap accounting", fakeV2, false, Limits{MemoryBytes: 4096}, map[string]string{
			"oc/x/gn-1/memory.max": "4096", "oc/x/gn-1/memory.oom.group": "0",
		}},
		{"v2 without limits", fakeV2, true, Limits{}, map[string]string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, mounts := tt.fake(t, "oc/x/gn-1", tt.swap)
			h, err := New(mounts, "oc/x")
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Create("gn-1", tt.limits); err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(tt.want)
			if strings.HasPrefix(tt.name, "v2") {
				maps.Copy(want, parents)
			}
			if got := written(t, dir); !maps.Equal(got, want) {
				t.Errorf("written %v\nwant %v", got, want)
			}
			if names, err := h.List(); err != nil || !slices.Equal(names, []string{"gn-1"}) {
				t.Errorf("List: %v, %v", names, err)
			}
			joins(t, h, dir)
		})
	}
}

// joins demands that a process joins every controller's group by writing to it.
func joins(t *testing.T, h *Hierarchy, dir string) {
	t.Helper()
	files := h.ProcsFiles("gn-1")
	if err := Join(files); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || string(b) != "0" || !strings.HasPrefix(f, dir) {
			t.Errorf("%s: %q, %v", f, b, err)
		}
	}
	if want := map[bool]int{false: 3, true: 1}[h.v2]; len(files) != want {
		t.Errorf("%d files to join by, want %d", len(files), want)
	}
}

// Which version is used follows from where the controllers are.
func TestMountTables(t *testing.T) {
	t.Parallel()
	dir1, v1 := fakeV1(t, "oc/gn-1", false)
	dir2, v2 := fakeV2(t, "oc/gn-1", false)
	for _, tt := range []struct {
		name    string
		mounts  []string
		v2      bool
		root    string
		failing string
	}{
		{name: "v1 alone", mounts: v1, root: dir1},
		{name: "v2 alone", mounts: v2, v2: true, root: dir2},
		{name: "hybrid: controllers are v1's", mounts: append(slices.Clone(v2), v1...), root: dir1},
		{name: "hybrid, other order", mounts: append(slices.Clone(v1), v2...), root: dir1},
		{name: "v1 for systemd only", mounts: append([]string{"cgroup /x/systemd cgroup rw,name=systemd 0 0"}, v2...), v2: true, root: dir2},
		{name: "mounted twice", mounts: append(slices.Clone(v2), "cgroup2 /elsewhere cgroup2 rw 0 0"), v2: true, root: dir2},
		{name: "none", mounts: []string{"proc /proc proc rw 0 0", "", "nonsense"}, failing: "mount cgroup2"},
		{name: "v1 without pids", mounts: v1[:2], failing: "pids"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := New(tt.mounts, "oc")
			if tt.failing != "" {
				if err == nil || !strings.Contains(err.Error(), tt.failing) {
					t.Errorf("New: %v, want an error with %q", err, tt.failing)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.v2 != tt.v2 || !strings.HasPrefix(h.ProcsFiles("gn-1")[0], tt.root) {
				t.Errorf("v2 %v, files %v", h.v2, h.ProcsFiles("gn-1"))
			}
		})
	}
}

func TestMountPointWithBlanks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	odd := filepath.Join(dir, "a b\\c")
	control(t, filepath.Join(odd, "oc"), "cgroup.subtree_control")
	control(t, odd, "cgroup.subtree_control")
	if _, err := New([]string{"cgroup2 " + dir + `/a\040b\134c cgroup2 rw 0 0`}, "oc"); err != nil {
		t.Error(err)
	}
}

// realGroups gives groups below a parent of the test's own on this machine.
func realGroups(t *testing.T) *Hierarchy {
	t.Helper()
	parent := "oc-test-" + strings.ToLower(rand.Text()[:10])
	h, err := Detect(parent)
	if err != nil {
		t.Fatalf("cgroups (run the tests as root): %v", err)
	}
	t.Cleanup(func() {
		names, err := h.List()
		for _, n := range names {
			err = errors.Join(err, h.Kill(context.Background(), n))
		}
		h.RemoveParent()
		if _, e := h.List(); err != nil || !errors.Is(e, fs.ErrNotExist) {
			t.Errorf("%s is left behind: %v, %v", parent, err, e)
		}
	})
	return h
}

// inGroup starts a shell script whose processes are all in the group.
func inGroup(t *testing.T, h *Hierarchy, name, script string) *exec.Cmd {
	t.Helper()
	join := ""
	for _, f := range h.ProcsFiles(name) {
		join += "echo $$ >" + f + " && "
	}
	c := exec.Command("sh", "-c", join+script)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("timed out waiting until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Kill ends processes that make new ones all the time, and removes the group.
func TestKillEndsWhatForks(t *testing.T) {
	t.Parallel()
	h := realGroups(t)
	if err := h.Create("gn-1", Limits{MemoryBytes: 64 << 20, CPUs: 1, Pids: 60}); err != nil {
		t.Fatal(err)
	}
	c := inGroup(t, h, "gn-1", "trap '' TERM; while :; do (sleep 300 & sleep 300) & sleep 0.01; done")
	eventually(t, "there are many processes", func() bool {
		pids, err := h.Procs("gn-1")
		if err != nil {
			t.Fatal(err)
		}
		return len(pids) > 20
	})
	if h.MemoryUsage("gn-1") <= 0 {
		t.Error("the group uses no memory")
	}
	if err := h.Kill(t.Context(), "gn-1"); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed, or taken by Kill
	if pids, err := h.Procs("gn-1"); err != nil || len(pids) > 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
	if names, err := h.List(); err != nil || len(names) > 0 {
		t.Errorf("groups left: %v, %v", names, err)
	}
	if err := h.Kill(t.Context(), "gn-1"); err != nil {
		t.Errorf("Kill of a missing group: %v", err)
	}
}

func TestPidsLimitHolds(t *testing.T) {
	t.Parallel()
	h := realGroups(t)
	if err := h.Create("gn-1", Limits{Pids: 10}); err != nil {
		t.Fatal(err)
	}
	c := inGroup(t, h, "gn-1", "for i in $(seq 50); do sleep 300 & done 2>/dev/null; wait")
	most := 0
	eventually(t, "the limit is reached", func() bool {
		pids, err := h.Procs("gn-1")
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, len(pids))
		return len(pids) >= 9
	})
	if most > 10 {
		t.Errorf("%d processes in a group of at most 10", most)
	}
	if err := h.Kill(t.Context(), "gn-1"); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed, or taken by Kill
}

// The limit of CPU time can be lifted and set again.
func TestCPUs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fake        func(*testing.T, string, bool) (string, []string)
		file        string
		free, three string
	}{
		"v1": {fakeV1, "cpu,cpuacct/oc/x/gn-1/cpu.cfs_quota_us", "-1", "300000"},
		"v2": {fakeV2, "oc/x/gn-1/cpu.max", "max 100000", "300000 100000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, mounts := tt.fake(t, "oc/x/gn-1", true)
			h, err := New(mounts, "oc/x")
			if err != nil {
				t.Fatal(err)
			}
			for _, step := range []struct {
				cpus int
				want string
			}{{3, tt.three}, {0, tt.free}, {3, tt.three}} {
				file := filepath.Join(dir, tt.file)
				if err := errors.Join(os.Truncate(file, 0), h.CPUs("gn-1", step.cpus).Apply()); err != nil {
					t.Fatal(err)
				}
				if b, err := os.ReadFile(file); err != nil || string(b) != step.want {
					t.Errorf("%d CPUs: %q, %v; want %q", step.cpus, b, err, step.want)
				}
			}
		})
	}
}

// A process of the node is in no generation's group, and goes with its own.
func TestOutside(t *testing.T) {
	t.Parallel()
	h := realGroups(t)
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait() // says that it was killed
	}()
	if err := h.Outside(c.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if names, err := h.List(); err != nil || len(names) > 0 {
		t.Errorf("groups of generations: %v, %v", names, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Process.Pid))
	if n := strings.Count(string(b), "/"+h.parent+"/node\n"); err != nil || n != len(h.dirs("x")) {
		t.Errorf("it is in %d groups of ours: %v\n%s", n, err, b)
	}
	if err := h.Outside(1 << 30); err == nil {
		t.Error("a process that there is not was moved")
	}
}

// Creating a group again keeps it and sets the new limits.
func TestCreateAgain(t *testing.T) {
	t.Parallel()
	h := realGroups(t)
	for _, pids := range []int{10, 20} {
		if err := h.Create("gn-1", Limits{Pids: pids}); err != nil {
			t.Fatal(err)
		}
	}
	w := h.settings("gn-1", Limits{Pids: 20})[0]
	if b, err := os.ReadFile(w.File); err != nil || strings.TrimSpace(string(b)) != "20" {
		t.Errorf("pids.max %q, %v", b, err)
	}
}

// Kill gives up with its context; the group stays for the next attempt.
func TestKillGivesUp(t *testing.T) {
	t.Parallel()
	h := realGroups(t)
	if err := h.Create("gn-1", Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range h.dirs("gn-1") { // a group inside keeps it busy
		if err := os.Mkdir(filepath.Join(d, "inner"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(filepath.Join(d, "inner")); os.Remove(d) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Kill(ctx, "gn-1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Kill: %v", err)
	}
	for _, d := range h.dirs("gn-1") {
		if err := os.Remove(filepath.Join(d, "inner")); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Kill(t.Context(), "gn-1"); err != nil {
		t.Errorf("Kill afterwards: %v", err)
	}
}
