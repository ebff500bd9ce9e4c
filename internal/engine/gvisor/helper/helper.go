// SPDX-License-Identifier: Apache-2.0

// Package helper is the engine helper: the short-lived process that speaks
// gVisor's control and page protocols for the driver.
//
// gVisor promises nothing about these protocols between versions, so a helper
// is always of the build of the engine that it talks to, while the server may
// be of another. Towards the server it speaks package wire. One process does
// one request at a time, so that a hung engine call can be ended alone, by killing
// it. Only the one that captures may stay for the next capture of the same engine.
//
// It knows gVisor, the pager and a checkpoint's files; it does not know
// sandboxes, rows or the server.
package helper

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/client"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// maxLine bounds a request or command.
const maxLine = 4 << 20

// Main runs the helper on the process' own standard streams and returns its
// exit code. Failures of the request are reported as events, not by the code.
func Main() int {
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: os.Stderr}})
	log.SetLevel(log.Warning)
	in := bufio.NewReaderSize(os.Stdin, 64<<10)
	out := &events{w: json.NewEncoder(os.Stdout)}
	if waiting() {
		if err := standby(wire.FDFirst); errors.Is(err, errDismissed) {
			return 0
		} else if err != nil {
			out.done(wire.Event{Error: err.Error()})
			return 1
		}
	}
	req, err := readLine[wire.Request](in)
	if err != nil {
		out.done(wire.Event{Error: fmt.Sprintf("helper: reading the request: %v", err)})
		return 1
	}
	if req.Version > wire.Version {
		out.done(wire.Event{Error: fmt.Sprintf("helper: the server speaks version %d, this build up to %d", req.Version, wire.Version)})
		return 1
	}
	run := map[string]func(*bufio.Reader, *events, wire.Request) error{
		wire.VerbPrepare:  prepare,
		wire.VerbCapture:  captures,
		wire.VerbRestore:  restore,
		wire.VerbPause:    steer,
		wire.VerbResume:   steer,
		wire.VerbWatch:    watch,
		wire.VerbPager:    serveImage,
		wire.VerbFeatures: features,
	}[req.Verb]
	untargeted := req.Verb == wire.VerbPager || req.Verb == wire.VerbFeatures
	if run == nil || len(req.Targets) == 0 && !untargeted {
		out.done(wire.Event{Error: fmt.Sprintf("helper: request %q with %d targets is not understood", req.Verb, len(req.Targets))})
		return 1
	}
	if err := run(in, out, req); err != nil {
		out.done(wire.Event{}.Failed(err))
		return 1
	}
	return 0
}

// events writes event lines; a server that went away is not an error, because
// a pager outlives it.
type events struct {
	mu sync.Mutex
	w  *json.Encoder
}

func (e *events) send(ev wire.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_ = e.w.Encode(ev) // the server may be gone
}

func (e *events) done(ev wire.Event) {
	ev.Event = wire.EventDone
	e.send(ev)
}

func readLine[T any](r *bufio.Reader) (v T, err error) {
	var line []byte
	for {
		part, prefix, err := r.ReadLine()
		if err != nil {
			return v, err
		}
		if line = append(line, part...); len(line) > maxLine {
			return v, io.ErrShortBuffer
		}
		if !prefix {
			break
		}
	}
	return v, json.Unmarshal(line, &v)
}

// features tells what this build's helpers can do.
func features(_ *bufio.Reader, out *events, _ wire.Request) error {
	out.done(wire.Event{Features: []string{wire.FeatureLinked}})
	return nil
}

// connect opens the control socket of a generation's engine.
func connect(t wire.Target) (*urpc.Client, error) {
	c, err := client.ConnectTo(filepath.Join(t.Dir, "runsc-"+t.Generation+".sock"))
	if err != nil {
		return nil, fmt.Errorf("the engine of %s does not answer: %w", t.Generation, err)
	}
	return c, nil
}

// steer makes one short call to an engine.
func steer(_ *bufio.Reader, out *events, req wire.Request) error {
	var err error
	if req.Marked {
		err = paused{req.Targets[0], os.NewFile(wire.FDWatchMark, "mark")}.release()
	} else {
		err = steerOne(req.Verb, req.Targets[0])
	}
	if err != nil {
		return err
	}
	out.done(wire.Event{})
	return nil
}

func steerOne(verb string, t wire.Target) error {
	c, err := connect(t)
	if err != nil {
		return err
	}
	defer c.Close()
	switch verb {
	case wire.VerbPause:
		err = c.Call(boot.ContMgrPause, nil, nil)
	case wire.VerbResume:
		err = c.Call(boot.ContMgrResume, nil, nil)
	}
	if err != nil {
		return fmt.Errorf("engine: %s: %w", verb, err)
	}
	return nil
}

// loopback gives an engine its network at a restore: its own stack with loopback
// only.
func loopback(c *urpc.Client) error {
	return c.Call(boot.ContMgrSetNetworkArgs, &boot.CreateLinksAndRoutesArgs{
		LoopbackLinks: []boot.LoopbackLink{boot.DefaultLoopbackLink}, IsRestore: true,
	}, nil)
}

// ignoreHangups keeps a process alive whose terminal or server goes away.
func ignoreHangups() {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE, unix.SIGTERM)
}
