// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// pidsMount is where the agent mounts the controller that limits processes.
const pidsMount = "/run/oc/pids"

// boot makes what a root file system may lack and sets the limit on processes.
// It gives the control group that sessions belong into, or "". What does not
// work is logged: a sandbox without it is better than none.
func (a *Agent) boot() (pidsGroup string) {
	for dir, perm := range map[string]fs.FileMode{
		"/etc": 0o755, "/run": 0o755, "/run/oc": 0o755, "/tmp": fs.ModeSticky | 0o777, "/dev/shm": fs.ModeSticky | 0o777,
	} {
		if err := ensureDir(a.inRoot(dir), perm); err != nil {
			a.log.Warn("directory not made", "err", err)
		}
	}
	if err := a.linkWorkspace(); err != nil {
		a.log.Warn("no /workspace", "err", err)
	}
	if !a.cfg.PID1 || a.cfg.PidsMax <= 0 {
		return ""
	}
	group, err := limitPids(a.inRoot(pidsMount), a.cfg.PidsMax)
	if err != nil {
		a.log.Warn("processes are not limited", "err", err)
		return ""
	}
	return group
}

// ensureDir makes a directory; one that is there stays as it is.
func ensureDir(path string, perm fs.FileMode) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, perm)
}

// linkWorkspace makes /workspace lead to the home of the sandbox's user, if
// there is such a user and no /workspace.
func (a *Agent) linkWorkspace() error {
	u, ok := a.findUser(sandboxUser)
	if !ok {
		return nil
	}
	if fi, err := os.Stat(u.home); err != nil || !fi.IsDir() {
		return nil
	}
	if err := os.Symlink(u.home, a.inRoot("/workspace")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// limitPids mounts the engine's own pids controller (version 1, inside the
// sandbox) and makes a group in it that holds at most n processes and threads.
func limitPids(mount string, n int) (group string, err error) {
	if err := ensureDir(mount, 0o700); err != nil {
		return "", err
	}
	if err := unix.Mount("none", mount, "cgroup", 0, "pids"); err != nil {
		return "", fmt.Errorf("mount the pids controller: %w", err)
	}
	group = filepath.Join(mount, "sessions")
	if err := os.Mkdir(group, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.Itoa(n)), 0); err != nil {
		return "", fmt.Errorf("set the limit: %w", err)
	}
	return group, nil
}

// probe proves that the sandbox works, as far as that can be had without
// starting a process, which would be the longest step of a spawn: the agent
// runs, and a file that it writes says what was written.
func (a *Agent) probe() error {
	word := newID("probe-")
	file := a.inRoot("/run/oc/" + word)
	defer os.Remove(file)
	if err := os.WriteFile(file, []byte(word), 0o600); err != nil {
		return failf(wire.Internal, "probe: the sandbox cannot write a file: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != word {
		return failf(wire.Internal, "probe: a file of the sandbox reads %q instead of %q: %v", got, word, err)
	}
	return nil
}
