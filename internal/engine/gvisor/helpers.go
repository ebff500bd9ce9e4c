// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/fault"
)

// HelperCommand is the subcommand of oc that is an engine helper.
const HelperCommand = "engine-helper"

const (
	// stderrLimit bounds what is kept of a helper's complaints, in bytes.
	stderrLimit = 64 << 10
	// killDelay is how long a helper's streams may stay open after its end.
	killDelay = 5 * time.Second
	// standbys is how many helpers of our own build wait for a request: what
	// one restore takes, with the capture of what it replaces.
	standbys = 3
	// standbyQuiet is how long no helper must have been wanted before standbys
	// are made again: their start would slow down what they are there to speed up.
	standbyQuiet = 150 * time.Millisecond
)

// helperProc is a running helper. Whoever has one calls wait.
type helperProc struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  io.ReadCloser
	stderr  *limited
	handoff *os.File // of one that waits: where it is told what it is
	stayed  bool     // after an earlier request
}

// wait takes the helper from the process table after its output was read.
func (h *helperProc) wait() error { return h.cmd.Wait() }

// endWith asks the helper to end when ctx does, and kills it if it does not. What
// it gives undoes that; false means that ctx ended first.
func (h *helperProc) endWith(ctx context.Context) (undo func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = h.cmd.Process.Signal(syscall.SIGTERM) // gone already is as good, here and below
		time.AfterFunc(killDelay, func() {
			_ = h.cmd.Process.Kill()
			_ = h.stdout.Close() // a child of its own may hold the other end
		})
	})
}

// helpers starts helpers, and keeps a few of our own build waiting, because
// starting the binary is a good part of a short operation.
type helpers struct {
	dir, build string // kept builds, and which of them has standbys
	outside    func(pid int) error
	starts     chan func()
	over       chan struct{} // closed by close

	filling sync.Mutex // held while standbys are made
	refill  *time.Timer

	mu     sync.Mutex
	idle   []*helperProc
	closed bool
}

func newHelpers(dir, build string, outside func(pid int) error) *helpers {
	hs := &helpers{dir: dir, build: build, outside: outside, starts: make(chan func()), over: make(chan struct{})}
	go hs.starter()
	hs.refill = time.AfterFunc(0, hs.fill)
	return hs
}

// starter starts all helpers from one thread: a helper that ends with its
// parent means the thread that started it.
func (hs *helpers) starter() {
	runtime.LockOSThread()
	for {
		select {
		case start := <-hs.starts:
			start()
		case <-hs.over:
			return
		}
	}
}

// get gives a helper of a build for a request of that verb, with its
// descriptors from number 3 on.
func (hs *helpers) get(build, verb string, files ...*os.File) (*helperProc, error) {
	if build == hs.build {
		if h := hs.take(verb, files); h != nil {
			return h, nil
		}
	}
	return hs.start(build, verb, files)
}

// take makes a standby the helper that is wanted; nil where there is none.
func (hs *helpers) take(verb string, files []*os.File) *helperProc {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed {
		return nil
	}
	hs.refill.Reset(standbyQuiet)
	for len(hs.idle) > 0 {
		h := hs.idle[0]
		hs.idle = hs.idle[1:]
		if err := h.assign(verb, files); err == nil {
			return h
		}
		h.dismiss() // it died
	}
	return nil
}

// assign tells a standby what it is.
func (h *helperProc) assign(verb string, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	defer h.handoff.Close() // a later one would come with a request
	defer runtime.KeepAlive(files)
	if err := syscall.Sendmsg(int(h.handoff.Fd()), []byte(verb), syscall.UnixRights(fds...), nil, syscall.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("engine: standby helper: %w", err)
	}
	return nil
}

// dismiss ends one that waits and is not wanted any more.
func (h *helperProc) dismiss() {
	hung := time.AfterFunc(killDelay, func() { _ = h.cmd.Process.Kill() }) // gone already is as good
	defer hung.Stop()
	_ = h.handoff.Close() // the end of its wait
	_ = h.stdin.Close()
	_ = h.wait()
}

// fill makes standbys.
func (hs *helpers) fill() {
	hs.filling.Lock()
	defer hs.filling.Unlock()
	for hs.lacking() {
		h, err := hs.startStandby()
		if err != nil {
			return // whoever needs a helper starts one, and hears why it fails
		}
		hs.mu.Lock()
		hs.idle = append(hs.idle, h)
		hs.mu.Unlock()
	}
}

func (hs *helpers) lacking() bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return !hs.closed && len(hs.idle) < standbys
}

func (hs *helpers) startStandby() (*helperProc, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	defer null.Close()
	// The numbers that its descriptors will have are taken from the beginning.
	h, err := hs.start(hs.build, wire.Standby, append([]*os.File{theirs}, slices.Repeat([]*os.File{null}, wire.MaxFiles-1)...))
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	h.handoff = ours
	return h, nil
}

func socketPair() (a, b *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("engine: socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "handoff"), os.NewFile(uintptr(fds[1]), "handoff"), nil
}

// start starts a helper, in a session of its own so that no terminal signal
// reaches it.
func (hs *helpers) start(build, verb string, files []*os.File) (*helperProc, error) {
	path := buildPath(hs.dir, build)
	if _, err := os.Stat(path); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the engine build %.12s is not kept on this machine", build).
			WithHint("copy that build to %s", path)
	}
	c := exec.Command(path, HelperCommand, verb)
	c.ExtraFiles = files
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Env = []string{"PATH=" + os.Getenv("PATH")}
	c.WaitDelay = killDelay
	h := &helperProc{cmd: c, stderr: &limited{limit: stderrLimit}}
	c.Stderr = h.stderr
	var err1, err2 error
	h.stdin, err1 = c.StdinPipe()
	h.stdout, err2 = c.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("engine: helper: %w", err)
	}
	started := make(chan error, 1)
	select {
	case hs.starts <- func() { started <- c.Start() }:
	case <-hs.over:
		return nil, errors.New("engine: the driver is closed")
	}
	if err := <-started; err != nil {
		return nil, fmt.Errorf("engine: helper: %w", err)
	}
	// A pager or a watchdog outlives the server, also where all of its control
	// group is ended.
	if err := hs.outside(c.Process.Pid); err != nil {
		_ = h.stdin.Close() // the end of it
		return nil, errors.Join(err, c.Process.Kill(), h.wait())
	}
	return h, nil
}

// close ends the standbys; no helper can be had afterwards. A second time is
// nothing.
func (hs *helpers) close() {
	hs.mu.Lock()
	closed := hs.closed
	hs.closed = true
	hs.mu.Unlock()
	if closed {
		return
	}
	hs.refill.Stop()
	hs.filling.Lock() // until none is being made
	defer hs.filling.Unlock()
	for _, h := range hs.idle {
		h.dismiss()
	}
	hs.idle = nil
	close(hs.over)
}

// send writes a line to the helper.
func (h *helperProc) send(line any) error {
	if err := json.NewEncoder(h.stdin).Encode(line); err != nil {
		return fmt.Errorf("engine: helper: %w", err)
	}
	return nil
}
