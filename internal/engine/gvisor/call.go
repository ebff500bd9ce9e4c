// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/fault"
)

// HelperCommand is the subcommand of oc that is an engine helper.
const HelperCommand = "engine-helper"

// Bounds of a helper's one event and of what is kept of its complaints, in
// bytes, and of how long its streams may stay open after it was killed.
const (
	eventLimit  = 1 << 20
	stderrLimit = 64 << 10
	killDelay   = 5 * time.Second
)

// helperCmd makes the command of a helper of the given build, in a session of
// its own so that no terminal signal reaches it.
func (d *Driver) helperCmd(ctx context.Context, build, verb string, files ...*os.File) (*exec.Cmd, error) {
	path := buildPath(d.cfg.BuildsDir, build)
	if _, err := os.Stat(path); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the engine build %.12s is not kept on this machine", build).
			WithHint("copy that build to %s", path)
	}
	c := exec.CommandContext(ctx, path, HelperCommand, verb)
	c.ExtraFiles = files
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Env = []string{"PATH=" + os.Getenv("PATH")}
	return c, nil
}

// call runs a helper to its end and gives its one event. When ctx ends first
// the helper is told to end, and soon killed, which leaves the engine running.
func (d *Driver) call(ctx context.Context, build string, req wire.Request, files ...*os.File) (wire.Event, error) {
	req.Version = wire.Version
	c, err := d.helperCmd(ctx, build, req.Verb, files...)
	if err != nil {
		return wire.Event{}, err
	}
	line, err := json.Marshal(req)
	if err != nil {
		return wire.Event{}, fmt.Errorf("engine: encoding a request: %w", err)
	}
	out, stderr := &limited{limit: eventLimit}, &limited{limit: stderrLimit}
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(append(line, '\n')), out, stderr
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = killDelay
	runtime.LockOSThread() // a helper that ends with its parent means this thread
	runErr := c.Run()
	runtime.UnlockOSThread()
	var ev wire.Event
	if err := json.Unmarshal(out.buf.Bytes(), &ev); err != nil {
		if ctx.Err() != nil {
			return ev, fmt.Errorf("engine: %s was broken off: %w", req.Verb, context.Cause(ctx))
		}
		return ev, fmt.Errorf("engine: helper %s ended without an answer: %w: %s", req.Verb, errors.Join(runErr, err), stderr)
	}
	if err := ev.Err(); err != nil {
		return ev, err
	}
	if s := strings.TrimSpace(stderr.String()); s != "" {
		d.cfg.Log.Debug("engine helper", "verb", req.Verb, "stderr", s)
	}
	return ev, nil
}

// limited keeps the first limit bytes written to it.
type limited struct {
	buf   bytes.Buffer
	limit int
}

func (l *limited) Write(p []byte) (int, error) {
	l.buf.Write(p[:min(len(p), l.limit-l.buf.Len())])
	return len(p), nil
}

func (l *limited) String() string { return l.buf.String() }
