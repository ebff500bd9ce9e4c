// SPDX-License-Identifier: Apache-2.0

// Package sandboxtest is a world for tests of the life cycle: the real
// metadata, and an engine whose every step a test can hold or make fail. Its
// generations are real agents as processes of the host, with a directory as
// their root; their state is what is in the file State there.
//
// The package is for tests only. Test binaries that use it have Main as their
// TestMain.
package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/agent"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store"
)

// agentRoot in the environment makes a process an agent with that root.
const agentRoot = "OC_SANDBOXTEST_AGENT_ROOT"

// Main runs the tests, or an agent in a process that was started to be one,
// and does not return. Goroutines of ours that outlive the tests are a failure.
func Main(m *testing.M) {
	if root := os.Getenv(agentRoot); root != "" {
		agent.New(agent.Config{Root: root, Log: slog.New(slog.DiscardHandler)}).Run()
	}
	code := m.Run()
	if left := leaked(Patience); left != "" && code == 0 {
		fmt.Fprintf(os.Stderr, "goroutines are left:\n%s\n", left)
		code = 1
	}
	os.Exit(code)
}

// leaked gives the stacks of goroutines that our code started and that do not
// end within the time.
func leaked(patience time.Duration) string {
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		buf := make([]byte, 4<<20)
		var left []string
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "\ncreated by github.com/opencomputer/oc/") {
				left = append(left, g)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
	}
}

// State is the file below a generation's root that is its state.
const State = "state"

// The steps of an engine, for Engine.Hook.
const (
	Prepare = "prepare"
	Start   = "start"
	Ready   = "ready" // of a capture, before BeforeFreeze
	Capture = "capture"
	Restore = "restore"
	Load    = "load" // after Restore has returned
	Hold    = "hold"
	Pause   = "pause"
	Resume  = "resume"
	Destroy = "destroy"
)

// Engine implements engine.Driver with host processes.
type Engine struct {
	// Early has it be of a build that does not know the store.
	Early bool
	// Files has its captures be in files, as those of the real one are: a pager can
	// have them before they are stored.
	Files bool
	// Pages are what captures that are not in files have of memory, in whole pages.
	Pages []byte
	// Captures are those that are not closed yet.
	Captures atomic.Int32

	dir string

	mu     sync.Mutex
	gens   map[string]*generation
	losses map[string]error // by generation
	hook   func(ctx context.Context, step, generation string) error
	spoil  func(generation string, c *engine.Capture)
}

type generation struct {
	cmd    *exec.Cmd
	root   string
	record engine.Process
	exited chan struct{}
}

var _ engine.Driver = (*Engine)(nil)

// NewEngine makes an engine with its files below dir.
func NewEngine(dir string) *Engine { return &Engine{dir: dir, gens: map[string]*generation{}} }

// BuildFile implements engine.Driver: there are none.
func (e *Engine) BuildFile(string) (string, bool) { return "", false }

// AddBuild implements engine.Driver.
func (e *Engine) AddBuild(string, io.Reader) error { return errors.ErrUnsupported }

// ReadsStore implements engine.Driver.
func (e *Engine) ReadsStore(context.Context, string, string) (bool, error) { return !e.Early, nil }

// Hook is asked at each step from now on: it may wait, and its error fails the
// step. nil takes it away.
func (e *Engine) Hook(f func(ctx context.Context, step, generation string) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hook = f
}

// Spoil may change each capture from now on; nil takes it away.
func (e *Engine) Spoil(f func(generation string, c *engine.Capture)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spoil = f
}

func (e *Engine) step(ctx context.Context, step, generation string) error {
	e.mu.Lock()
	hook := e.hook
	e.mu.Unlock()
	if hook == nil {
		return ctx.Err()
	}
	return hook(ctx, step, generation)
}

// Close ends all generations.
func (e *Engine) Close() error {
	e.Hook(nil)
	ids, err := e.Leftovers()
	for _, id := range ids {
		err = errors.Join(err, e.DestroyGeneration(context.Background(), id))
	}
	return err
}

// Root is the directory of a generation.
func (e *Engine) Root(generation string) string { return filepath.Join(e.dir, generation) }

// Build implements engine.Driver.
func (e *Engine) Build() string { return "test" }

// Prepare implements engine.Driver: the agent is there, but stopped.
func (e *Engine) Prepare(ctx context.Context, spec engine.Spec, stdin *os.File) (engine.Process, error) {
	if err := e.step(ctx, Prepare, spec.Generation); err != nil {
		return engine.Process{}, err
	}
	p, err := e.launch(spec, stdin, nil)
	if err != nil {
		return p, err
	}
	return p, syscall.Kill(p.PID, syscall.SIGSTOP)
}

// Kill implements engine.Driver; for a test it is the death of an engine.
func (e *Engine) Kill(generation string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := e.gens[generation]; g != nil {
		_ = g.cmd.Process.Kill() // gone is as good
	}
	return nil
}

// Requirements implements engine.Driver.
func (*Engine) Requirements() engine.Requirements { return engine.Requirements{Engine: "fake"} }

// Check implements engine.Driver.
func (*Engine) Check(_ string, r engine.Requirements) error {
	if r.Engine != "fake" {
		return fault.New(fault.Invalid, "engine %q", r.Engine)
	}
	return nil
}

// Start implements engine.Driver.
func (e *Engine) Start(ctx context.Context, spec engine.Spec, stdin *os.File) (engine.Process, error) {
	err := e.step(ctx, Start, spec.Generation)
	if err == nil {
		_, err = os.Stat(spec.ImagePath)
	}
	if err != nil {
		return engine.Process{}, err
	}
	return e.launch(spec, stdin, nil)
}

// launch starts an agent with a state.
func (e *Engine) launch(spec engine.Spec, stdin *os.File, state []byte) (engine.Process, error) {
	root := e.Root(spec.Generation)
	for _, d := range []string{"etc", "run/oc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return engine.Process{}, err
		}
	}
	if err := os.WriteFile(filepath.Join(root, State), state, 0o600); err != nil {
		return engine.Process{}, err
	}
	c := exec.Command("/proc/self/exe")
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), agentRoot+"="+root)
	c.Stdin = stdin
	// As in a sandbox, the agent is the first process, and all others end with it.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWPID}
	if err := c.Start(); err != nil {
		return engine.Process{}, err
	}
	g := &generation{cmd: c, root: root, exited: make(chan struct{}),
		record: engine.Process{Generation: spec.Generation, Build: "fake", Engine: "fake", Dir: root, PID: c.Process.Pid, StartTime: 1}}
	go func() {
		defer close(g.exited)
		_ = c.Wait() // killed, mostly
	}()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gens[spec.Generation] = g
	return g.record, nil
}

// Restore implements engine.Driver.
func (e *Engine) Restore(ctx context.Context, src engine.Source, targets []engine.Target) (_ engine.Restoring, err error) {
	r := &restoring{e: e, loaded: make(chan struct{}), errs: make([]error, len(targets))}
	defer func() {
		if err != nil {
			for _, t := range targets {
				err = errors.Join(err, e.remove(t.Spec.Generation))
			}
		}
	}()
	if e.Early && !filepath.IsAbs(src.Location) {
		return nil, errors.New("not a directory")
	}
	files, err := dups(src.Files)
	if err != nil {
		return nil, err
	}
	img, err := store.Reach(ctx, src.Location, files)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	f := img.File(store.FileState)
	state, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if err := e.step(ctx, Restore, t.Spec.Generation); err != nil {
			return nil, err
		}
		p, err := e.bringUp(t, state)
		if err != nil {
			return nil, err
		}
		r.procs = append(r.procs, p)
	}
	go r.load()
	return r, nil
}

// bringUp starts a target with a state.
func (e *Engine) bringUp(t engine.Target, state []byte) (engine.Process, error) {
	p := t.Prepared
	if p.PID == 0 {
		return e.launch(t.Spec, t.Stdin, state)
	}
	if err := os.WriteFile(filepath.Join(e.Root(p.Generation), State), state, 0o600); err != nil {
		return p, err
	}
	return p, syscall.Kill(p.PID, syscall.SIGCONT)
}

// restoring implements engine.Restoring.
type restoring struct {
	e      *Engine
	procs  []engine.Process
	loaded chan struct{}
	errs   []error // set before loaded is closed
}

func (r *restoring) load() {
	defer close(r.loaded)
	for i, p := range r.procs {
		if r.errs[i] = r.e.step(context.Background(), Load, p.Generation); r.errs[i] != nil {
			r.e.mu.Lock()
			if r.e.losses == nil {
				r.e.losses = map[string]error{}
			}
			r.e.losses[p.Generation] = r.errs[i]
			r.e.mu.Unlock()
			_ = r.e.Kill(p.Generation) // never fails
		}
	}
}

func (r *restoring) Processes() []engine.Process { return r.procs }

func (r *restoring) Await(context.Context, int) error { return nil }

// Pager is a process that is no pager and outlives the test: its end is not
// what the tests are about.
func (r *restoring) Pager() engine.Process {
	return engine.Process{PID: os.Getpid(), StartTime: 1}
}

func (r *restoring) Hold(ctx context.Context, i int) error {
	if err := r.e.step(ctx, Hold, r.procs[i].Generation); err != nil {
		return err
	}
	return syscall.Kill(r.procs[i].PID, syscall.SIGSTOP)
}

func (r *restoring) Resume(ctx context.Context, i int) error {
	return r.e.Resume(ctx, r.procs[i])
}

func (r *restoring) Loaded() <-chan struct{} { return r.loaded }

func (r *restoring) Err(i int) error {
	select {
	case <-r.loaded:
		return r.errs[i]
	default:
		return nil
	}
}

func (r *restoring) Release() {}

// Hurry implements engine.Driver.
func (*Engine) Hurry(engine.Process) {}

// Pause implements engine.Driver.
func (e *Engine) Pause(ctx context.Context, p engine.Process) error {
	if err := e.step(ctx, Pause, p.Generation); err != nil {
		return err
	}
	return syscall.Kill(p.PID, syscall.SIGSTOP)
}

// Resume implements engine.Driver.
func (e *Engine) Resume(ctx context.Context, p engine.Process) error {
	if err := e.step(ctx, Resume, p.Generation); err != nil {
		return err
	}
	return syscall.Kill(p.PID, syscall.SIGCONT)
}

// Alive implements engine.Driver.
func (e *Engine) Alive(p engine.Process) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.gens[p.Generation]
	if g == nil || g.record != p {
		return false
	}
	select {
	case <-g.exited:
		return false
	default:
		return true
	}
}

// Exited implements engine.Driver. A pager never ends.
func (e *Engine) Exited(_ context.Context, p engine.Process) (<-chan struct{}, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ended := make(chan struct{})
	if g := e.gens[p.Generation]; g != nil {
		return g.exited, nil
	}
	if p.Generation != "" {
		close(ended)
	}
	return ended, nil
}

// LastWords implements engine.Driver.
func (*Engine) LastWords(engine.Process) string { return "" }

// Loss implements engine.Driver.
func (e *Engine) Loss(p engine.Process) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.losses[p.Generation]
}

// Usage implements engine.Driver.
func (*Engine) Usage(engine.Process) (memory, disk int64) { return 1 << 20, 0 }

// Destroy implements engine.Driver.
func (e *Engine) Destroy(ctx context.Context, p engine.Process) error {
	return e.DestroyGeneration(ctx, p.Generation)
}

// DestroyGeneration implements engine.Driver.
func (e *Engine) DestroyGeneration(ctx context.Context, id string) error {
	if err := e.step(ctx, Destroy, id); err != nil {
		return err
	}
	return e.remove(id)
}

func (e *Engine) remove(id string) error {
	e.mu.Lock()
	g := e.gens[id]
	delete(e.gens, id)
	e.mu.Unlock()
	if g != nil {
		_ = g.cmd.Process.Kill() // gone is as good
		<-g.exited
	}
	return os.RemoveAll(e.Root(id))
}

// Leftovers implements engine.Driver.
func (e *Engine) Leftovers() ([]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := slices.Collect(maps.Keys(e.gens))
	es, err := os.ReadDir(e.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, f := range es {
		if !slices.Contains(ids, f.Name()) {
			ids = append(ids, f.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Reap implements engine.Driver.
func (*Engine) Reap() {}
