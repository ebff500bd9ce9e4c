// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/fault"
)

func TestStartAndDestroy(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	if g.Hello.PID != 1 {
		t.Errorf("the agent is process %d", g.Hello.PID)
	}
	if got := g.Must(t, "hostname; echo $((6*7)); id -u"); got != "sb-test\n42\n0" {
		t.Errorf("the guest says %q", got)
	}
	if memory, disk := host.Usage(g.Process); memory <= 0 || disk < 0 {
		t.Errorf("usage %d, %d", memory, disk)
	}
	p, err := engine.DecodeProcess(g.Encode())
	if err != nil || p != g.Process || !host.Alive(p) {
		t.Errorf("the record does not find the process again: %+v, %v", p, err)
	}
	exited, err := host.Exited(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	// What a helper leaves that is killed when it has made the file of the disk.
	left := filepath.Join(host.Config.DiskDir, p.Generation)
	if err := errors.Join(os.Mkdir(left, 0o700), os.WriteFile(filepath.Join(left, "runsc-filestore-1"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := host.Destroy(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	select {
	case <-exited:
	case <-time.After(enginetest.Patience):
		t.Error("a destroyed engine was not seen to exit")
	}
	gone(t, p.Generation)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of its disk is left: %v", err)
	}
	if host.Alive(p) {
		t.Error("alive after Destroy")
	}
	if memory, disk := host.Usage(p); memory != 0 || disk != 0 {
		t.Errorf("usage of what is gone: %d, %d", memory, disk)
	}
	if err := host.Destroy(t.Context(), p); err != nil {
		t.Errorf("Destroy again: %v", err)
	}
}

// An engine that dies by itself is noticed, and what is left of it can go.
func TestEngineDies(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	g.Begin(t, "sleep 1000")
	exited, err := host.Exited(t.Context(), g.Process)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(g.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-exited:
	case <-time.After(enginetest.Patience):
		t.Fatal("its exit was not noticed")
	}
	if words := host.LastWords(g.Process); words != "" {
		t.Errorf("a killed engine said %q", words)
	}
	if _, err := host.Capture(t.Context(), g.Process, inMemory); err == nil {
		t.Error("a dead engine was captured")
	}
	if err := host.Destroy(t.Context(), g.Process); err != nil {
		t.Fatal(err)
	}
	gone(t, g.Generation)
}

func TestFailedStartLeavesNothing(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.erofs")
	if err := os.WriteFile(bad, []byte(strings.Repeat("not an image ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*engine.Spec){
		"missing image": func(s *engine.Spec) { s.ImagePath = "/nonexistent/image" },
		"bad image":     func(s *engine.Spec) { s.ImagePath = bad },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := enginetest.Spec(t, enginetest.Shape())
			change(&spec)
			_, guest := enginetest.Pair(t)
			if _, err := host.Driver.Start(t.Context(), spec, guest); err == nil {
				t.Error("started")
			} else {
				t.Log(err)
			}
			gone(t, spec.Generation)
		})
	}
}

// A deadline at any time gives an error in time, and leaves nothing.
func TestStartDeadline(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 30 * time.Millisecond, 70 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			t.Parallel()
			spec := enginetest.Spec(t, enginetest.Shape())
			_, guest := enginetest.Pair(t)
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			p, err := host.Driver.Start(ctx, spec, guest)
			if err == nil { // it was faster
				err = host.Destroy(t.Context(), p)
			}
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			gone(t, spec.Generation)
		})
	}
}

// A pause stops the guest's processes, and a resume lets them go on.
func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	for range 2 { // both can be repeated
		if err := host.Pause(t.Context(), g.Process); err != nil {
			t.Fatal(err)
		}
		stopped(t, g)
		if err := host.Resume(t.Context(), g.Process); err != nil {
			t.Fatal(err)
		}
		g.Must(t, "true")
	}
}

// stopped demands that a guest does not answer.
func stopped(t *testing.T, g *enginetest.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := g.Agent.Sessions(ctx); err == nil {
		t.Error("the guest answers while it is paused")
	}
}

func TestCheckRefusesWithAReason(t *testing.T) {
	t.Parallel()
	own := host.Requirements()
	if err := host.Check(host.Build(), own); err != nil {
		t.Fatalf("our own captures are refused: %v", err)
	}
	for what, change := range map[string]func(*engine.Requirements){
		"gvisor other": func(r *engine.Requirements) { r.Engine = "gvisor other" },
		"arm64":        func(r *engine.Requirements) { r.Arch = "arm64" },
		"lacks quantum": func(r *engine.Requirements) {
			r.CPUFeatures = append([]string{"quantum"}, r.CPUFeatures...)
		},
	} {
		r := own
		change(&r)
		if err := host.Check("", r); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	other := own
	other.Engine = "gvisor other"
	if err := host.Check(host.Build(), other); err != nil { // by the build that wrote it, which is kept
		t.Errorf("another engine, whose build is kept: %v", err)
	}
	fewer := own
	fewer.CPUFeatures = own.CPUFeatures[:len(own.CPUFeatures)/2]
	if err := host.Check(host.Build(), fewer); err != nil {
		t.Errorf("a capture that needs less: %v", err)
	}
}

// The build that engines run from is a copy of the driver's own.
func TestKeptBuild(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", g.PID))
	if err != nil || exe != host.BinaryPath() || g.Build != host.Build() {
		t.Errorf("the engine runs %s (%v) of build %.8s, kept is %s", exe, err, g.Build, host.BinaryPath())
	}
	p := g.Process
	p.Build = strings.Repeat("0", 64)
	if err := host.Pause(t.Context(), p); err == nil || fault.As(err).Hint == "" {
		t.Errorf("an engine of a build that is not here: %v", err)
	}
}
