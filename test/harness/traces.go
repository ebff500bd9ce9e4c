// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// instance is the name under which a server keeps its run-time directory and its
// cgroups.
func (s *Server) instance() string {
	sum := sha256.Sum256([]byte(s.Data))
	return hex.EncodeToString(sum[:4])
}

// Leftovers names what exists on this machine of the server and its sandboxes:
// processes, mounts, cgroups, its run-time directory, and scratch in its data
// directory. A server that is down with all its sandboxes killed has none.
func (s *Server) Leftovers() []string {
	var left []string
	for _, p := range s.Processes() {
		left = append(left, p.String())
	}
	for _, dir := range append(s.cgroups(), s.runDir()) {
		if _, err := os.Stat(dir); err == nil {
			left = append(left, strings.Join(append([]string{"directory", dir}, names(dir)...), " "))
		}
	}
	return append(left, s.Scratch()...)
}

// Scratch names what a server at rest has none of, whatever sandboxes run: mounts
// that others see, and scratch in its data directory.
func (s *Server) Scratch() (found []string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		// The data directory itself may be a mount of the test's.
		if strings.Contains(line, s.Data+"/") || strings.Contains(line, s.runDir()) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	for _, dir := range []string{"disks", "uploads", "tmp", "checkpoints/.staging"} {
		for _, name := range names(filepath.Join(s.Data, dir)) {
			found = append(found, "scratch "+filepath.Join(s.Data, dir, name))
		}
	}
	return found
}

// Generations gives, for each place on this machine that has something of its own
// for each generation, the ids of those that it has: the run-time directory, and
// the control groups.
func (s *Server) Generations() map[string][]string {
	found := map[string][]string{}
	for _, dir := range append(s.cgroups(), s.runDir()) {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		found[dir] = slices.DeleteFunc(names(dir), func(n string) bool { return !strings.HasPrefix(n, "gn-") })
	}
	return found
}

// KeeperSocket is where the server's keeper listens.
func (s *Server) KeeperSocket() string { return filepath.Join(s.runDir(), "keeper.sock") }

func names(dir string) []string {
	var out []string
	entries, _ := os.ReadDir(dir) // none where there is no directory
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (s *Server) runDir() string { return "/run/opencomputer/" + s.instance() }

// cgroups are the places of the server's groups, on cgroup v1 and v2.
func (s *Server) cgroups() []string {
	group := "opencomputer/" + s.instance()
	places := []string{filepath.Join("/sys/fs/cgroup", group)}
	v1, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", "*", group))
	return append(places, v1...)
}

// Process is one of a server's processes.
type Process struct {
	PID  int
	Args []string
}

// String shows the process on a line.
func (p Process) String() string {
	return fmt.Sprintf("process %d: %.200s", p.PID, strings.Join(p.Args, " "))
}

// Processes are those of the server and its sandboxes: they run one of its kept
// builds, work in one of its cgroups, or name its directories.
func (s *Server) Processes() []Process {
	var out []Process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() || pid == s.minder.cmd.Process.Pid {
			continue
		}
		exe, _ := os.Readlink(filepath.Join(dir, "exe")) // errors: the process has ended
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if strings.HasPrefix(exe, s.Data+"/") ||
			strings.Contains(string(cgroup), "opencomputer/"+s.instance()) ||
			strings.Contains(string(cmdline), s.Data+"/") || strings.Contains(string(cmdline), s.runDir()) ||
			strings.Contains(string(environ), "OC_DATA_DIR="+s.Data+"\x00") {
			out = append(out, Process{pid, strings.Split(strings.Trim(string(cmdline), "\x00"), "\x00")})
		}
	}
	return out
}

// Loading counts the sandboxes' pagers: processes that still load checkpoints.
func (s *Server) Loading() int {
	n := 0
	for _, p := range s.Processes() {
		if slices.Contains(p.Args, "engine-helper") && slices.Contains(p.Args, "restore") {
			n++
		}
	}
	return n
}
