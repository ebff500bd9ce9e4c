// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// maxTimeout keeps a timeout within what a Duration can hold.
const maxTimeout = 365 * 24 * 3600

var errNoInterpreter = errors.New("the interpreter of the program was not found")

// startSession starts a session, or gives the one that was started with the
// same key.
func (a *Agent) startSession(req wire.StartRequest) (*session, error) {
	if err := checkStart(req); err != nil {
		return nil, err
	}
	a.sessions.starting.Lock()
	defer a.sessions.starting.Unlock()
	if s := a.sessions.find(req.Key); s != nil {
		return s, nil
	}
	if err := a.sessions.checkRoom(); err != nil {
		return nil, err
	}
	u, err := a.lookupUser(req.User)
	if err != nil {
		return nil, err
	}
	cwd, err := a.workingDir(req.Cwd, u)
	if err != nil {
		return nil, err
	}
	s := &session{
		id: newID("es-"), key: req.Key, user: u.name, cwd: cwd, argv: req.Argv,
		startedAt: time.Now(), log: newOutlog(req.Output),
	}
	if req.Hold {
		s.log.hold()
	}
	env := environment(u, req.TTY != nil, req.Env)
	path, err := program(req.Argv[0], env, cwd)
	if err == nil {
		if err = a.spawn(s, path, req, u, env); errors.Is(err, unix.ENOENT) {
			err = errNoInterpreter // the file itself was there
		}
		if errors.Is(err, unix.EACCES) && !u.mayEnter(cwd) {
			return nil, failf(wire.Invalid, "working directory %s may not be entered by user %s", cwd, u.name)
		}
	}
	if err != nil {
		code, message := startFailure(req.Argv[0], err)
		if code == 0 {
			return nil, err
		}
		s.failed(code, message)
	}
	a.sessions.add(s)
	return s, nil
}

func checkStart(req wire.StartRequest) error {
	switch {
	case req.Key == "" || len(req.Key) > 256:
		return failf(wire.Invalid, "a session needs a key of at most 256 bytes")
	case len(req.Argv) == 0 || req.Argv[0] == "":
		return failf(wire.Invalid, "no command given")
	case !(req.Timeout >= 0 && req.Timeout <= maxTimeout):
		return failf(wire.Invalid, "timeout must be between 0 and %d seconds", maxTimeout)
	case req.Output < 0 || req.Output > maxOutput:
		return failf(wire.Invalid, "at most %d bytes of output can be kept", maxOutput)
	}
	for _, arg := range append([]string{req.Cwd, req.User}, req.Argv...) {
		if strings.ContainsRune(arg, 0) {
			return failf(wire.Invalid, "an argument contains a NUL byte")
		}
	}
	for _, kv := range req.Env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" || strings.ContainsRune(kv, 0) {
			return failf(wire.Invalid, "environment entry %q is not NAME=VALUE", kv)
		}
	}
	return nil
}

// workingDir resolves and checks the working directory.
func (a *Agent) workingDir(cwd string, u account) (string, error) {
	if cwd == "" {
		if fi, err := os.Stat(u.home); err == nil && fi.IsDir() {
			return u.home, nil
		}
		return a.cfg.Root, nil
	}
	if !filepath.IsAbs(cwd) {
		cwd = filepath.Join(u.home, cwd)
	}
	fi, err := os.Stat(cwd)
	switch {
	case err != nil:
		return "", failf(wire.Invalid, "working directory %s does not exist", cwd)
	case !fi.IsDir():
		return "", failf(wire.Invalid, "working directory %s is not a directory", cwd)
	}
	return cwd, nil
}

// startFailure says how a shell would report that a command could not be
// started. Code 0 means that the fault is not the command's.
func startFailure(argv0 string, err error) (code int, message string) {
	switch {
	case errors.Is(err, errNoInterpreter):
		return 127, argv0 + ": cannot run: its interpreter was not found"
	case errors.Is(err, unix.ENOENT):
		return 127, argv0 + ": not found"
	case errors.Is(err, unix.EACCES):
		return 126, argv0 + ": permission denied"
	case errors.Is(err, unix.EISDIR):
		return 126, argv0 + ": is a directory"
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.E2BIG), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ELOOP):
		return 126, argv0 + ": " + err.Error()
	}
	return 0, ""
}

// spawn connects the session and starts its process.
func (a *Agent) spawn(s *session, path string, req wire.StartRequest, u account, env []string) error {
	child, err := s.connect(req.TTY)
	if err != nil {
		return err
	}
	defer func() {
		for _, fd := range child {
			_ = unix.Close(fd)
		}
	}()
	attr := &syscall.ProcAttr{
		Dir: s.cwd, Env: env, Files: []uintptr{uintptr(child[0]), uintptr(child[1%len(child)]), uintptr(child[2%len(child)])},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: req.TTY != nil, Ctty: 0},
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
	}
	if req.TTY != nil {
		_ = unix.Fchown(child[0], int(u.uid), -1)
	}
	s.pumps.Add(len(s.outs))
	pid, err := a.reaper.start(func() (int, error) {
		pid, err := a.launcher.forkExec(path, req.Argv, attr)
		if errors.Is(err, unix.ENOEXEC) { // a script without a first line: what execvp does
			argv := append([]string{"/bin/sh", path}, req.Argv[1:]...)
			pid, err = a.launcher.forkExec(argv[0], argv, attr)
		}
		return pid, err
	}, s.ended)
	if err != nil {
		s.disconnect()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOMEM) {
			return failf(wire.Exhausted, "the sandbox cannot start another process: %v", err)
		}
		return err
	}
	s.mu.Lock()
	s.pid = pid
	s.mu.Unlock()
	for i, f := range s.outs {
		go s.pump(wire.Stdout+wire.Stream(i), f)
	}
	s.setTimeout(time.Duration(req.Timeout*float64(time.Second)), func() {
		_ = a.reaper.signalGroup(pid, unix.SIGKILL)
	})
	return nil
}

// connect makes the pipes or the terminal and gives the process's descriptors:
// one terminal, or stdin, stdout and stderr.
func (s *session) connect(tty *wire.Size) (child []int, err error) {
	if tty != nil {
		master, slave, err := openPTY(*tty)
		if err != nil {
			return nil, err
		}
		f, err := ourEnd(master, "terminal")
		if err != nil {
			unix.Close(slave)
			return nil, err
		}
		s.in, s.outs = newStdin(f, true), []*os.File{f}
		return []int{slave}, nil
	}
	var ours [3]*os.File
	for i := range ours {
		var p [2]int // read end, write end
		if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err == nil {
			end := 1 // the process's
			if i == 0 {
				end = 0
			}
			child = append(child, p[end])
			ours[i], err = ourEnd(p[1-end], "pipe")
		}
		if err != nil {
			for _, fd := range child {
				unix.Close(fd)
			}
			for _, f := range ours {
				_ = f.Close() // nil is an error, not a panic
			}
			return nil, err
		}
	}
	s.in, s.outs = newStdin(ours[0], false), ours[1:]
	return child, nil
}

// disconnect undoes connect and pumps that were not started.
func (s *session) disconnect() {
	for _, f := range s.outs {
		s.pumps.Done()
		_ = f.Close()
	}
	s.in.shut()
	s.in, s.outs = nil, nil
}

// ourEnd makes a descriptor one that goroutines can wait on.
func ourEnd(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// newID makes a random id.
func newID(prefix string) string {
	var b [4]byte
	for {
		if _, err := unix.Getrandom(b[:], 0); err == nil {
			return prefix + hex.EncodeToString(b[:])
		}
	}
}
