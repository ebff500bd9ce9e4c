// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
	"gvisor.dev/gvisor/runsc/version"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/cgroup"
	"github.com/opencomputer/oc/internal/engine/gvisor/disk"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/shape"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// enginePrefix stands before the stamp in what a checkpoint requires.
const enginePrefix = "gvisor "

// agentPath is the agent inside every image.
const agentPath = "/.oc/agent"

// OOM scores: what the guest's processes inherit, and what the engine gets
// afterwards, so that the kernel prefers a guest process.
const (
	guestOOMScore  = 1000
	engineOOMScore = 100
)

// prepare makes the engine process of a generation in its cgroup. This process
// joins the cgroup first, so that nothing of the engine is ever outside it.
func prepare(_ *bufio.Reader, out *events, req wire.Request) error {
	t, p := req.Targets[0], req.Prepare
	if p == nil {
		return errors.New("helper: prepare without its parameters")
	}
	if err := cgroup.Join(p.CgroupProcs); err != nil {
		return err
	}
	// Inherited by the engine and its children; not being allowed to is fine.
	_ = proc.SetOOMScore(os.Getpid(), guestOOMScore)
	att, err := disk.Overlay{}.Attach(disk.Request{
		ImagePath: p.ImagePath, SizeBytes: p.Shape.DiskBytes, Dir: p.DiskDir, Scratch: t.Dir,
	})
	if err != nil {
		return err
	}
	conf, err := engineConfig(t.Dir, att.Flags)
	if err != nil {
		return err
	}
	spec := ociSpec(p, att)
	if err := writeBundle(t.Dir, spec, p.Shape); err != nil {
		return err
	}
	// gVisor hands this process' standard streams to the root container.
	os.Stdin = os.NewFile(wire.FDStdin, "agent-stdin")
	output := os.NewFile(wire.FDOutput, "agent-output")
	os.Stdout, os.Stderr = output, output
	c, err := container.New(conf, container.Args{ID: t.Generation, Spec: spec, BundleDir: t.Dir})
	if err != nil {
		return fmt.Errorf("engine: creating: %w", err)
	}
	_ = proc.SetOOMScore(c.SandboxPid(), engineOOMScore)
	if req.Start {
		if err := c.Start(conf); err != nil {
			return fmt.Errorf("engine: starting: %w", err)
		}
	}
	start, err := proc.StartTime(c.SandboxPid())
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	out.done(wire.Event{Process: engine.Process{
		Generation: t.Generation, Engine: enginePrefix + version.Version(), Dir: t.Dir, PID: c.SandboxPid(), StartTime: start, GoferPID: c.GoferPid.Load(),
	}})
	return nil
}

// engineConfig is how every engine of this build runs. Cgroups are ours
// (package cgroup), and so is the validation of a checkpoint against the place
// where it is restored (paths differ between machines and data directories).
func engineConfig(dir string, extra []string) (*config.Config, error) {
	fs := flag.NewFlagSet("engine", flag.ContinueOnError)
	config.RegisterFlags(fs)
	args := append([]string{
		"--root=" + dir,
		"--platform=systrap",
		"--network=none", // loopback in the engine's own stack
		"--gofer-network-namespace=new",
		"--ignore-cgroups",
		"--allow-suid", // sudo
		"--restore-spec-validation=ignore",
		"--host-settings=ignore",
		"--panic-log=" + filepath.Join(dir, wire.PanicLog),
	}, extra...)
	if err := fs.Parse(args); err != nil {
		return nil, fmt.Errorf("engine: flags: %w", err)
	}
	conf, err := config.NewFromFlags(fs)
	if err != nil {
		return nil, fmt.Errorf("engine: configuration: %w", err)
	}
	return conf, nil
}

// writeBundle leaves the OCI bundle and the shape where the engine looks.
func writeBundle(dir string, spec *specs.Spec, s engine.Shape) error {
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("engine: encoding the configuration: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return shape.Write(dir, s)
}

func ociSpec(p *wire.PrepareExtra, att disk.Attachment) *specs.Spec {
	tmpfs := func(dst string, opts ...string) specs.Mount {
		opts = append(opts, "size="+strconv.FormatInt(p.Shape.MemoryBytes, 10))
		return specs.Mount{Destination: dst, Type: "tmpfs", Source: "tmpfs", Options: opts}
	}
	caps := capabilities()
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: p.Hostname,
		Process: &specs.Process{
			Args: []string{agentPath},
			Cwd:  "/",
			Env: []string{
				"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				"OC_PIDS_MAX=" + strconv.Itoa(p.Shape.PidsMax),
			},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 65536, Hard: 1 << 20}},
		},
		Root: &specs.Root{Path: att.RootPath},
		Mounts: append([]specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs"},
			tmpfs("/tmp", "mode=1777"),
			tmpfs("/run", "mode=755"),
			tmpfs("/dev/shm", "mode=1777"),
		}, att.Mounts...),
		Annotations: att.Annotations,
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	}
}

// capabilities of root inside: all that the engine implements for a container.
// They are capabilities in the guest's kernel, not in the host's.
func capabilities() []string {
	return specutils.AllCapabilities().Bounding
}
