// SPDX-License-Identifier: Apache-2.0

package template

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

// tool is an outside program that a build runs.
type tool struct {
	name string
	pkg  string // the Debian package that has it
	args []string
	env  []string

	// alone gives the program mount and process namespaces of its own: whatever
	// it mounts or starts is gone when it ends, however it ends.
	alone bool
}

// endTime is how long a tool that was told to end may take before it is killed
// with what it has started.
const endTime = 5 * time.Second

// run runs a tool to its end and gives each line of its output. It dies with
// ctx, and with this process.
func (t tool) run(ctx context.Context, line func(string)) error {
	path, err := exec.LookPath(t.name)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "%s, which making templates needs, is not installed", t.name).
			WithHint("apt-get install %s", t.pkg)
	}
	out := &lines{each: line}
	cmd := exec.CommandContext(ctx, path, t.args...)
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
	}, t.env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if t.alone {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // Go makes its mounts private
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = endTime

	done := make(chan error, 1)
	go func() {
		// The parent that Pdeathsig is about is the thread, so it must not end
		// before the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	err = <-done
	out.flush()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return t.failure(err, out.tail)
}

func (t tool) failure(err error, tail []string) error {
	said := strings.Join(tail, "\n")
	f := fault.Wrap(fault.Unavailable, fmt.Errorf("%w: %s", err, said), "%s failed", t.name)
	switch {
	case strings.Contains(said, "No space left on device"):
		return noSpace(fmt.Errorf("%s: %w", t.name, syscall.ENOSPC))
	case errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EPERM):
		return f.WithHint("Making templates needs root with the right to mount (CAP_SYS_ADMIN).")
	case len(tail) > 0:
		return f.WithHint("It said: %s", tail[len(tail)-1])
	}
	return f
}

// lines splits output into lines and keeps the last ones. Both its sizes are
// bounded.
type lines struct {
	each func(string) // may be nil
	part []byte
	tail []string
}

const (
	maxLine = 4096
	maxTail = 20
)

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexAny(p, "\r\n")
		if i < 0 {
			l.keep(p)
			break
		}
		l.keep(p[:i])
		l.flush()
		p = p[i+1:]
	}
	return n, nil
}

func (l *lines) keep(p []byte) {
	l.part = append(l.part, p[:min(len(p), maxLine-len(l.part))]...)
}

// flush ends the present line.
func (l *lines) flush() {
	text := strings.TrimSpace(strings.ToValidUTF8(string(l.part), "?"))
	l.part = l.part[:0]
	if text == "" {
		return
	}
	if l.tail = append(l.tail, text); len(l.tail) > maxTail {
		l.tail = l.tail[1:]
	}
	if l.each != nil {
		l.each(text)
	}
}

// output runs one of the host's package tools and gives what it prints, at most
// limit bytes.
func output(ctx context.Context, limit int64, name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "this host is not a Debian system: it has no %s", name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.LimitReader(bufio.NewReader(pipe), limit+1))
	if int64(len(data)) > limit {
		cmd.Process.Kill()
		err = fmt.Errorf("more than %d bytes", limit)
	}
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return string(data), nil
}
