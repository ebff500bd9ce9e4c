// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultPath is PATH where the caller gives none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// launcher forks all processes from one thread. That thread, and it alone of
// the agent's, is in the control group that limits processes: a child is born
// where its parent's thread is, so the limit holds from its first instruction,
// while the agent itself can still make threads when the sandbox is full.
type launcher struct {
	jobs    chan func()
	limited bool // the group limits
}

// newLauncher starts the thread, in the control group at dir, or in none if
// dir is empty.
func newLauncher(dir string, log *slog.Logger) *launcher {
	l := &launcher{jobs: make(chan func())}
	ready := make(chan bool)
	go func() {
		runtime.LockOSThread()
		ready <- dir != "" && joinGroup(dir, log)
		for job := range l.jobs {
			job()
		}
	}()
	l.limited = <-ready
	return l
}

// joinGroup moves the calling thread, not the process, into a control group.
func joinGroup(dir string, log *slog.Logger) bool {
	if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0); err != nil {
		log.Warn("processes are not limited", "err", err)
		return false
	}
	return true
}

// do runs f on the launcher's thread.
func (l *launcher) do(f func()) {
	done := make(chan struct{})
	l.jobs <- func() { defer close(done); f() }
	<-done
}

// forkExec starts a process in a session of its own.
func (l *launcher) forkExec(path string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	l.do(func() { pid, err = syscall.ForkExec(path, argv, attr) })
	return pid, err
}

// program finds what argv0 means in an environment and directory. The errors
// are ENOENT, EACCES and EISDIR; an unusable file in PATH does not hide a usable one after it.
func program(argv0 string, env []string, cwd string) (string, error) {
	if strings.Contains(argv0, "/") {
		p := argv0
		if !filepath.IsAbs(p) {
			p = filepath.Join(cwd, p)
		}
		return p, executable(p)
	}
	err := error(unix.ENOENT)
	for dir := range strings.SplitSeq(getenv(env, "PATH"), ":") {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		p := filepath.Join(dir, argv0)
		perr := executable(p)
		if perr == nil {
			return p, nil
		}
		if errors.Is(perr, unix.EACCES) {
			err = perr
		}
	}
	return "", err
}

func executable(p string) error {
	fi, err := os.Stat(p)
	switch {
	case err != nil:
		return unix.ENOENT
	case fi.IsDir():
		return unix.EISDIR
	case fi.Mode()&0o111 == 0:
		return unix.EACCES
	}
	return nil
}

// environment puts the caller's variables over the defaults.
func environment(u account, tty bool, over []string) []string {
	env := []string{"PATH=" + defaultPath, "HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name, "LANG=C.UTF-8"}
	if tty {
		env = append(env, "TERM=xterm-256color")
	}
	at := make(map[string]int, len(env)+len(over))
	for i, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		at[k] = i
	}
	for _, kv := range over {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			env[i] = kv
			continue
		}
		at[k] = len(env)
		env = append(env, kv)
	}
	return env
}

func getenv(env []string, key string) string {
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == key {
			return v
		}
	}
	return ""
}
