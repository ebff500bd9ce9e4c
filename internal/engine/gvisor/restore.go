// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// Restore implements engine.Driver. The engine processes are prepared side by
// side, then one helper loads the checkpoint into all of them and stays to serve
// their pages, also when this server ends; beside it a pager, if it is of
// another build.
func (d *Driver) Restore(ctx context.Context, src engine.Source, targets []engine.Target) (_ engine.Restoring, err error) {
	build, err := d.buildFor(src.Build, src.Engine)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(src.Location) { // a directory is of the first format, which all know
		writer, ok := build, false
		if build, ok, err = d.reader(ctx, writer, src.Engine); err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("engine: the oc build %.12s cannot read the store", writer)
		}
	}
	r, err := d.startRestoring(ctx, build, src, len(targets)) // beside the preparations
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(targets))
	turns := make(chan struct{}, runtime.NumCPU()+1) // more at once only get in each other's way
	var wg sync.WaitGroup
	for i, t := range targets {
		if t.Prepared.Build == build {
			r.procs[i] = t.Prepared
			continue
		}
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			r.procs[i], errs[i] = d.prepare(ctx, build, t.Spec, t.Stdin, false)
		})
	}
	wg.Wait()
	defer func() {
		if err != nil {
			r.kill()
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
			defer cancel()
			for _, t := range targets {
				err = errors.Join(err, d.DestroyGeneration(cleanup, t.Spec.Generation))
			}
		}
	}()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := r.begin(wire.Request{Rate: bulkRate(d.cfg.BulkRate, len(targets)), Memory: wire.Memory{Reserve: d.cfg.Reserve, Groups: d.groups.MemoryGroups()}}); err != nil {
		return nil, err
	}
	return r, nil
}

// bulkRate is the loading rate of each of n targets restored at once: more than
// two share what two may have, so that loading leaves the machine to those that
// are still coming up.
func bulkRate(rate int64, n int) int64 {
	const together, floor = 2, 1 << 20
	if n <= together {
		return rate
	}
	return min(rate, max(rate*together/int64(n), floor))
}

// restoring implements engine.Restoring over a helper process.
type restoring struct {
	*helperProc
	d     *Driver
	procs []engine.Process
	pager engine.Process
	from  wire.Request // what it is told of the image
	pages *pageSource  // nil: the helper opens the image itself

	running []chan struct{} // by target, closed when it runs or is lost
	loaded  chan struct{}   // closed when each target is loaded or lost

	mu      sync.Mutex
	state   []targetState
	errs    []error
	nextID  int
	replies map[int]chan error
}

type targetState int

const (
	targetStarting targetState = iota
	targetRunning
	targetOver // loaded or lost
)

// startRestoring starts the helper, which waits for begin, and the pager where
// there is one.
func (d *Driver) startRestoring(ctx context.Context, build string, src engine.Source, targets int) (*restoring, error) {
	from := wire.Request{Image: src.Location, Files: len(src.Files)}
	files := src.Files
	var pages *pageSource
	linked, err := d.linked(ctx, build)
	if err == nil && linked {
		var end *os.File
		if pages, end, err = d.startPager(src); err == nil {
			defer end.Close() // the helper has it by then
			from, files = wire.Request{Linked: true}, []*os.File{end}
		}
	}
	if err != nil {
		return nil, err
	}
	// Not bound to a context: the helper ends by itself.
	h, err := d.helpers.get(build, wire.VerbRestore, files...)
	if err != nil {
		return nil, err
	}
	r := &restoring{
		helperProc: h, d: d, from: from, pages: pages, procs: make([]engine.Process, targets),
		running: make([]chan struct{}, targets), loaded: make(chan struct{}),
		state: make([]targetState, targets), errs: make([]error, targets), replies: map[int]chan error{},
	}
	for i := range r.running {
		r.running[i] = make(chan struct{})
	}
	start, _ := proc.StartTime(h.cmd.Process.Pid) // 0 if it is gone already
	r.pager = engine.Process{Build: build, PID: h.cmd.Process.Pid, StartTime: start}
	go r.events()
	return r, nil
}

// begin has the helper load what the request says into the prepared processes.
func (r *restoring) begin(req wire.Request) error {
	req.Version, req.Verb = wire.Version, wire.VerbRestore
	req.Image, req.Files, req.Linked = r.from.Image, r.from.Files, r.from.Linked
	for _, p := range r.procs {
		req.Targets = append(req.Targets, target(p))
	}
	return r.send(req)
}

// events follows the helper to its end.
func (r *restoring) events() {
	dec := json.NewDecoder(bufio.NewReader(r.stdout))
	failure := errors.New("the pager ended before the sandbox was loaded")
	for {
		var ev wire.Event
		if err := dec.Decode(&ev); err != nil {
			break
		}
		switch {
		case ev.Event == wire.EventDone && ev.Command == 0 && ev.Error != "":
			failure = ev.Err() // the whole request failed
		case ev.Event == wire.EventDone:
			r.reply(ev)
		case ev.Target >= 0 && ev.Target < len(r.state):
			r.note(ev)
		}
	}
	_ = r.wait() // its events said what there was to say
	r.end(failure)
	r.pages.unwanted()
}

func (r *restoring) reply(ev wire.Event) {
	r.mu.Lock()
	ch := r.replies[ev.Command]
	delete(r.replies, ev.Command)
	r.mu.Unlock()
	if ch != nil {
		ch <- ev.Err()
	}
}

func (r *restoring) note(ev wire.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.state[ev.Target] == targetOver:
	case ev.Event == wire.EventRunning:
		r.state[ev.Target] = targetRunning
	case ev.Event == wire.EventLoaded:
		r.state[ev.Target] = targetOver
	case ev.Event == wire.EventLost:
		r.state[ev.Target], r.errs[ev.Target] = targetOver, ev.Err()
	}
	r.announce()
}

// announce closes the channels whose condition holds. r.mu is held.
func (r *restoring) announce() {
	least := targetOver
	for i, s := range r.state {
		least = min(least, s)
		if s >= targetRunning {
			closeOnce(r.running[i])
		}
	}
	if least >= targetOver {
		closeOnce(r.loaded)
	}
}

func closeOnce(ch chan struct{}) {
	select {
	case <-ch:
	default:
		close(ch)
	}
}

// end settles what the helper left open.
func (r *restoring) end(failure error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.state {
		if r.state[i] != targetOver {
			r.state[i], r.errs[i] = targetOver, failure
		}
	}
	for id, ch := range r.replies {
		ch <- failure
		delete(r.replies, id)
	}
	r.announce()
}

// Await implements engine.Restoring.
func (r *restoring) Await(ctx context.Context, i int) error {
	select {
	case <-r.running[i]:
	case <-ctx.Done():
		return fmt.Errorf("engine: restore: %w", context.Cause(ctx))
	}
	r.mu.Lock()
	err := r.errs[i]
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return r.d.limitCPUs(r.procs[i].Generation)
}

func (r *restoring) kill() { _ = r.cmd.Process.Kill() } // gone already is as good

// Processes implements engine.Restoring.
func (r *restoring) Processes() []engine.Process { return r.procs }

// Pager implements engine.Restoring.
func (r *restoring) Pager() engine.Process { return r.pager }

// Hold implements engine.Restoring.
func (r *restoring) Hold(ctx context.Context, i int) error { return r.command(ctx, wire.VerbPause, i) }

// Resume implements engine.Restoring.
func (r *restoring) Resume(ctx context.Context, i int) error {
	return r.command(ctx, wire.VerbResume, i)
}

func (r *restoring) command(ctx context.Context, do string, i int) error {
	ch := make(chan error, 1)
	r.mu.Lock()
	r.nextID++
	id := r.nextID
	r.replies[id] = ch
	err := r.send(wire.Command{ID: id, Do: do, Target: i})
	r.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return fmt.Errorf("engine: %s: %w", do, context.Cause(ctx))
	}
}

// Loaded implements engine.Restoring.
func (r *restoring) Loaded() <-chan struct{} { return r.loaded }

// Err implements engine.Restoring.
func (r *restoring) Err(i int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.errs[i]
}

// Release implements engine.Restoring.
func (r *restoring) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.stdin.Close() // the end of commands
}

// Hurry implements engine.Driver.
func (d *Driver) Hurry(pager engine.Process) {
	if proc.Alive(pager.PID, pager.StartTime) {
		_ = unix.Kill(pager.PID, unix.SIGUSR1) // gone: loaded
	}
}
