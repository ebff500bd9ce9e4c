// SPDX-License-Identifier: Apache-2.0

// Package gvisor is the engine driver for gVisor (systrap: no hardware
// virtualisation needed).
//
// The driver lives in the server but never speaks gVisor's protocols itself:
// each call into an engine is made by an engine helper (package helper) of the
// engine's own build, over package wire. What exists of a generation on the
// host: one cgroup, one run-time directory, an unlinked file on the data disk,
// and the processes in the cgroup. Destroying a generation is ending the
// cgroup and removing the directory, from any state, by anyone.
//
// It knows processes and files; not sandboxes, rows, or why.
package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/cpuid"
	"gvisor.dev/gvisor/runsc/version"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/cgroup"
	"github.com/opencomputer/oc/internal/engine/gvisor/disk"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/shape"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/hostmem"
)

// Config says where the driver keeps things.
type Config struct {
	Binary    string // the oc binary that engines and helpers run; "" = this process' own
	BuildsDir string // kept builds, on the data disk
	DiskDir   string // files of writable layers, on the data disk
	RunDir    string // run-time directories; short, because sockets live in it
	Cgroup    string // parent group
	BulkRate  int64  // loading of restored memory beyond what the guest waits for, bytes/s per sandbox
	Reserve   int64  // memory that shall stay free: with less, that loading slows down; 0 = the default of package hostmem
	Log       *slog.Logger
}

// Driver implements engine.Driver.
type Driver struct {
	cfg    Config
	build  string
	groups *cgroup.Hierarchy
	disk   disk.Kind
	need   engine.Requirements
	reaper proc.Reaper

	callTime time.Duration // bounds a call to an engine or helper that has no time of its own
	helpers  *helpers
	stayers  stayers
	spare    spare
	features features
	ending   sync.WaitGroup // helpers that have answered
}

var _ engine.Driver = (*Driver)(nil)

// DefaultBulkRate suits a machine with few cores: a gigabyte loads in ten
// seconds beside running work.
const DefaultBulkRate = 100 << 20

// engineOverhead is the memory that a generation's cgroup may use beyond what
// its guest is shown: the engine itself, its ~16 KB per file created, and what
// each guest process costs it in stubs and page tables. A guest that takes more
// than it was shown is stopped only by this sum.
func engineOverhead(s engine.Shape) int64 {
	const base, perProcess, mostProcesses = 256 << 20, 1 << 20, 256
	return base + s.MemoryBytes/8 + int64(min(s.PidsMax, mostProcesses))*perProcess
}

// hostPids bounds the host threads of a generation. One guest process may take
// a stub process, its tracer, a thread for system calls, a thread per CPU, and
// an engine thread per blocked task; a fork bomb was seen to take 9 on one CPU.
// The engine panics where it cannot have them, so the guest's own limit
// (Shape.PidsMax, set by the agent in the engine's pids cgroup) must bite first.
func hostPids(s engine.Shape) int { return (8+2*s.CPUs)*s.PidsMax + 1024 }

// New makes the driver, keeps a copy of this build, makes the parent cgroup and
// ends the helpers of an earlier driver on the same directories; an engine that one
// of them held goes on. The process becomes the reaper of its orphaned descendants, because
// engines are started by helpers that end.
func New(cfg Config) (*Driver, error) {
	if cfg.BulkRate == 0 {
		cfg.BulkRate = DefaultBulkRate
	}
	for _, d := range []string{cfg.BuildsDir, cfg.DiskDir, cfg.RunDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("engine: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("engine: becoming the reaper of engines: %w", err)
	}
	groups, err := cgroup.Detect(cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	if cfg.Binary == "" {
		cfg.Binary = ownBinary
	}
	build, err := keepBuild(cfg.BuildsDir, cfg.Binary)
	if err != nil {
		return nil, err
	}
	cpuid.Initialize()
	features := strings.Fields(cpuid.HostFeatureSet().FlagString())
	slices.Sort(features)
	d := &Driver{cfg: cfg, build: build, groups: groups, disk: disk.Overlay{}, callTime: callTime, need: engine.Requirements{
		Engine: "gvisor " + version.Version(), Arch: runtime.GOARCH, CPUFeatures: features,
	}}
	holds := d.endStrays()
	d.helpers = newHelpers(cfg.BuildsDir, build, groups.Outside)
	d.stayers.ending = &d.ending
	d.endHolds(holds)
	if err := d.limitAll(); err != nil {
		d.helpers.close()
		return nil, err
	}
	return d, nil
}

// Requirements implements engine.Driver.
func (d *Driver) Requirements() engine.Requirements { return d.need }

// Build implements engine.Driver.
func (d *Driver) Build() string { return d.build }

// Check implements engine.Driver.
func (d *Driver) Check(build string, r engine.Requirements) error {
	if _, err := d.buildFor(build, r.Engine); err != nil {
		return err
	}
	if r.Arch != d.need.Arch {
		return fault.New(fault.Invalid, "the checkpoint is of a %s machine, this is %s", r.Arch, d.need.Arch)
	}
	var missing []string
	for _, f := range r.CPUFeatures {
		if _, ok := slices.BinarySearch(d.need.CPUFeatures, f); !ok {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return fault.New(fault.Invalid, "this machine's CPU lacks %s, which the checkpoint needs", strings.Join(missing, ", ")).
			WithHint("restore it on a machine whose CPU has them")
	}
	return nil
}

// buildFor is the build that runs what the given one wrote: that one where it
// is kept, since its engine's images are its own, or else this one if its
// engine has the same stamp.
func (d *Driver) buildFor(build, stamp string) (string, error) {
	if _, err := os.Stat(buildPath(d.cfg.BuildsDir, build)); build != "" && err == nil {
		return build, nil
	}
	if stamp == d.need.Engine {
		return d.build, nil
	}
	return "", fault.New(fault.Invalid, "the checkpoint was made by engine %q, whose oc build %.12s is not kept on this machine", stamp, build).
		WithHint("copy that build to %s", buildPath(d.cfg.BuildsDir, build))
}

func (d *Driver) dir(generation string) string { return filepath.Join(d.cfg.RunDir, generation) }

// diskDir is where a generation's writable layer is made. Its file has a name there for
// as long as it takes to open it; who is killed just then leaves it.
func (d *Driver) diskDir(generation string) string { return filepath.Join(d.cfg.DiskDir, generation) }

// prepare makes the engine process of a generation from a kept build.
func (d *Driver) prepare(ctx context.Context, build string, s engine.Spec, stdin *os.File, start bool) (_ engine.Process, err error) {
	dir := d.dir(s.Generation)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.MkdirAll(d.diskDir(s.Generation), 0o700)); err != nil {
		return engine.Process{}, fmt.Errorf("engine: %w", err)
	}
	defer func() {
		if err == nil {
			_ = os.Remove(d.diskDir(s.Generation)) // empty now; or else it goes with the generation
		} else {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
			defer cancel()
			err = errors.Join(err, d.DestroyGeneration(cleanup, s.Generation))
		}
	}()
	if err := d.groups.Create(s.Generation, cgroup.Limits{ // without CPUs: see limitCPUs
		MemoryBytes: s.Shape.MemoryBytes + engineOverhead(s.Shape), Pids: hostPids(s.Shape),
	}); err != nil {
		return engine.Process{}, err
	}
	// What PID 1 would print has no bound, and root inside can print as PID 1.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return engine.Process{}, fmt.Errorf("engine: %w", err)
	}
	defer null.Close()
	ev, err := d.call(ctx, build, wire.Request{
		Verb: wire.VerbPrepare, Start: start,
		Targets: []wire.Target{{Generation: s.Generation, Dir: dir}},
		Prepare: &wire.PrepareExtra{
			Hostname: s.Hostname, ImagePath: s.ImagePath, DiskDir: d.diskDir(s.Generation), Shape: s.Shape,
			CgroupProcs: d.groups.ProcsFiles(s.Generation),
		},
	}, stdin, null)
	if err != nil {
		return engine.Process{}, err
	}
	p := ev.Process
	p.Build = build
	if start {
		err = d.limitCPUs(p.Generation)
	}
	return p, err
}

// limitCPUs gives a generation the CPU time of its shape. The limit is the
// guest's: while the engine comes up, loads or saves a state, it may use what
// the machine has, or a sandbox of one CPU would be restored at half the speed.
func (d *Driver) limitCPUs(generation string) error {
	s, err := shape.Read(d.dir(generation))
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return d.groups.CPUs(generation, s.CPUs).Apply()
}

// limitAll does it for the generations of an earlier driver, which may have
// ended in the middle of a capture. One that cannot be limited is being ended.
func (d *Driver) limitAll() error {
	ids, err := d.Leftovers()
	for _, id := range ids {
		if err := d.limitCPUs(id); err != nil {
			d.cfg.Log.Debug("limiting the CPU time of an earlier generation", "generation", id, "error", err)
		}
	}
	return err
}

// Prepare implements engine.Driver.
func (d *Driver) Prepare(ctx context.Context, s engine.Spec, stdin *os.File) (engine.Process, error) {
	return d.prepare(ctx, d.build, s, stdin, false)
}

// Start implements engine.Driver.
func (d *Driver) Start(ctx context.Context, s engine.Spec, stdin *os.File) (engine.Process, error) {
	return d.prepare(ctx, d.build, s, stdin, true)
}

// Pause implements engine.Driver.
func (d *Driver) Pause(ctx context.Context, p engine.Process) error {
	return d.control(ctx, p, wire.VerbPause)
}

// Resume implements engine.Driver.
func (d *Driver) Resume(ctx context.Context, p engine.Process) error {
	return d.control(ctx, p, wire.VerbResume)
}

func (d *Driver) control(ctx context.Context, p engine.Process, verb string) error {
	_, err := d.call(ctx, p.Build, wire.Request{Verb: verb, Targets: []wire.Target{target(p)}})
	return err
}

func target(p engine.Process) wire.Target {
	return wire.Target{Generation: p.Generation, Dir: p.Dir, PID: p.PID, StartTime: p.StartTime}
}

// Alive implements engine.Driver.
func (d *Driver) Alive(p engine.Process) bool { return proc.Alive(p.PID, p.StartTime) }

// Exited implements engine.Driver.
func (d *Driver) Exited(ctx context.Context, p engine.Process) (<-chan struct{}, error) {
	return proc.Exited(ctx, p.PID, p.StartTime)
}

// LastWords implements engine.Driver: the head of a Go panic, which names its
// cause.
func (d *Driver) LastWords(p engine.Process) string {
	f, err := os.Open(filepath.Join(p.Dir, wire.PanicLog))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 2048)
	n, _ := f.Read(b) // empty: it said nothing
	return strings.TrimSpace(string(b[:n]))
}

// Loss implements engine.Driver.
func (*Driver) Loss(p engine.Process) error { return wire.Loss(p.Dir) }

// Usage implements engine.Driver.
func (d *Driver) Usage(p engine.Process) (memory, diskBytes int64) {
	if !d.Alive(p) {
		return 0, 0
	}
	return disk.MemoryUsage(p.PID), d.disk.Usage(p.PID)
}

// Memory reads what this machine has for generations and for this process.
func (d *Driver) Memory() hostmem.Reader { return hostmem.Within(d.groups.MemoryGroups()...) }

// destroyTimeout bounds the clean-up after a failure.
const destroyTimeout = 30 * time.Second

// Kill implements engine.Driver.
func (d *Driver) Kill(generation string) error { return d.groups.KillNow(generation) }

// Destroy implements engine.Driver.
func (d *Driver) Destroy(ctx context.Context, p engine.Process) error {
	return d.DestroyGeneration(ctx, p.Generation)
}

// DestroyGeneration implements engine.Driver.
func (d *Driver) DestroyGeneration(ctx context.Context, id string) error {
	defer func() { // last: a capture that ends meanwhile looks whether the engine runs
		select {
		case <-d.stayers.drop(id):
		case <-ctx.Done():
		}
	}()
	if err := d.groups.Kill(ctx, id); err != nil {
		return err
	}
	err := os.RemoveAll(d.dir(id))
	if errors.Is(err, unix.ENOTEMPTY) { // its pager left its last word there, which it does once
		err = os.RemoveAll(d.dir(id))
	}
	if err = errors.Join(err, os.RemoveAll(d.diskDir(id))); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return nil
}

// Leftovers implements engine.Driver.
func (d *Driver) Leftovers() ([]string, error) {
	ids, err := d.groups.List()
	if err != nil {
		return nil, err
	}
	es, err := os.ReadDir(d.cfg.RunDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("engine: %w", err)
	}
	for _, e := range es {
		if e.IsDir() && strings.HasPrefix(e.Name(), "gn-") && !slices.Contains(ids, e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Outside moves a process of the node's, which is to outlive the server, out of
// the server's control group.
func (d *Driver) Outside(pid int) error { return d.groups.Outside(pid) }

// Reap implements engine.Driver: stub processes of an engine that died are
// inherited by the reaper.
func (d *Driver) Reap() { d.reaper.Reap() }

// BinaryPath is the kept copy of this build.
func (d *Driver) BinaryPath() string { return buildPath(d.cfg.BuildsDir, d.build) }

// Close ends what waits for work, and removes the parent cgroup if nothing runs
// any more. The driver cannot be used afterwards.
func (d *Driver) Close() {
	d.spare.close()
	d.stayers.close()
	d.helpers.close()
	d.ending.Wait()
	d.groups.RemoveParent()
}
