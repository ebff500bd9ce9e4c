// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// ProbeArg is the argument with which the agent starts itself for a probe; see
// RunProbe.
const ProbeArg = "probe"

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

// probe proves that the sandbox works: a process can be started, it can write
// a file, and the file says what was written.
func (a *Agent) probe(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	word := newID("probe-")
	file := a.inRoot("/run/oc/" + word)
	defer os.Remove(file)
	ended := make(chan syscall.WaitStatus, 1)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}}
	pid, err := a.reaper.start(func() (int, error) {
		return a.launcher.forkExec(self, []string{self, ProbeArg, file, word}, attr)
	}, func(ws syscall.WaitStatus) { ended <- ws })
	if err != nil {
		return failf(wire.Internal, "probe: the sandbox cannot start a process: %v", err)
	}
	select {
	case ws := <-ended:
		if ws.ExitStatus() != 0 {
			return failf(wire.Internal, "probe: a process of the sandbox failed with status %d", ws.ExitStatus())
		}
	case <-ctx.Done():
		_ = a.reaper.signalGroup(pid, unix.SIGKILL)
		return failf(wire.Unavailable, "probe: a process of the sandbox did not end in time")
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != word {
		return failf(wire.Internal, "probe: a file of the sandbox reads %q instead of %q: %v", got, word, err)
	}
	return nil
}

// RunProbe is what the process of a probe does with its arguments: it writes
// the second into the file named by the first. It gives the exit status.
func RunProbe(args []string) int {
	if len(args) != 2 || os.WriteFile(args[0], []byte(args[1]), 0o600) != nil {
		return 1
	}
	return 0
}
