// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/hostmem"
	"github.com/opencomputer/oc/internal/pager"
)

// restoring is a restore in progress: this process serves the pages of its
// targets, and outlives the server.
type restoring struct {
	req     wire.Request
	out     *events
	servers []*pager.Server
	turns   chan struct{} // an engine that decodes its state takes one
}

// restore loads the checkpoint into the targets and returns when all of them
// are loaded or lost, and the server has released this process or gone away.
func restore(in *bufio.Reader, out *events, req wire.Request) error {
	outlive()
	files, closeFiles, err := openSource(req)
	if err != nil {
		return err
	}
	defer closeFiles()
	r := &restoring{req: req, out: out, servers: make([]*pager.Server, len(req.Targets)), turns: make(chan struct{}, runtime.NumCPU()+1)}
	for i := range req.Targets {
		r.servers[i] = pager.NewServer(files, req.Rate, len(req.Targets), func(err error) { r.lose(i, err) })
	}
	ended := make(chan struct{})
	defer close(ended)
	hurry := make(chan os.Signal, 1)
	signal.Notify(hurry, unix.SIGUSR1) // somebody waits for the load to end
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	g := governor{full: req.Rate, reserve: req.Memory.Reserve, memory: hostmem.Within(req.Memory.Groups...), set: func(rate int64) {
		for _, s := range r.servers {
			s.SetRate(rate)
		}
		if rate == 0 {
			r.begin()
		}
	}}
	go g.run(tick.C, hurry, ended)
	released := make(chan struct{})
	late := time.AfterFunc(releaseTime, r.begin)
	defer late.Stop()
	go func() {
		defer close(released)
		r.commands(in)
		r.begin()
	}()
	var wg sync.WaitGroup
	for i := range req.Targets {
		wg.Go(func() { r.load(i) })
	}
	wg.Wait()
	<-released
	return nil
}

// releaseTime bounds how long the memory that no guest waits for is held back for
// a server that lives and neither releases nor ends this process.
const releaseTime = 2 * time.Minute

// begin has all the memory come, also what no guest waits for: no target is still
// to be brought up beside it.
func (r *restoring) begin() {
	for _, s := range r.servers {
		s.Begin()
	}
}

// load restores one target and waits until all its memory is there.
func (r *restoring) load(i int) {
	r.turns <- struct{}{}
	err := r.start(i)
	<-r.turns
	if err != nil {
		r.lose(i, err)
		return
	}
	r.out.send(wire.Event{Event: wire.EventRunning, Target: i})
	c, err := connect(r.req.Targets[i])
	if err == nil {
		err = c.Call(boot.ContMgrWaitRestore, nil, nil)
		c.Close()
	}
	if err != nil {
		r.lose(i, fmt.Errorf("engine: loading: %w", err))
		return
	}
	r.out.send(wire.Event{Event: wire.EventLoaded, Target: i})
}

func (r *restoring) start(i int) error {
	c, err := connect(r.req.Targets[i])
	if err != nil {
		return err
	}
	defer c.Close()
	sock, err := r.servers[i].Serve()
	if err != nil {
		return err
	}
	defer sock.Close()
	if err := loopback(c); err != nil {
		return fmt.Errorf("engine: network: %w", err)
	}
	if err := c.Call(boot.ContMgrRestore, &boot.RestoreOpts{
		Background: true, UseCheckpointGofer: true, FilePayload: urpc.FilePayload{Files: []*os.File{sock}},
	}, nil); err != nil {
		return fmt.Errorf("engine: restore: %w", err)
	}
	return nil
}

// lose ends a target whose state cannot be had, before it can act on wrong
// memory, and says why.
func (r *restoring) lose(i int, err error) {
	t := r.req.Targets[i]
	ev := wire.Event{Event: wire.EventLost, Target: i}.Failed(err)
	r.out.send(ev)
	if proc.Alive(t.PID, t.StartTime) { // or else somebody has ended it, and what it leaves is being removed
		_ = wire.LeaveLoss(t.Dir, ev)      // for a server that begins when this one has gone; it may do without
		_ = unix.Kill(t.PID, unix.SIGKILL) // gone already is as good
	}
}

// commands obeys the server until it releases this process or goes away.
func (r *restoring) commands(in *bufio.Reader) {
	for {
		cmd, err := readLine[wire.Command](in)
		if err != nil || cmd.Do == wire.Release {
			return
		}
		ev := wire.Event{Command: cmd.ID, Target: cmd.Target}
		switch {
		case cmd.Target < 0 || cmd.Target >= len(r.req.Targets):
			ev.Error = fmt.Sprintf("helper: no target %d", cmd.Target)
		case cmd.Do == wire.VerbPause || cmd.Do == wire.VerbResume:
			if err := steerOne(cmd.Do, r.req.Targets[cmd.Target]); err != nil {
				ev = ev.Failed(err)
			}
		default:
			ev.Error = fmt.Sprintf("helper: unknown command %q", cmd.Do)
		}
		r.out.done(ev)
	}
}
