// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/cgroup"
	"github.com/opencomputer/oc/internal/engine/enginetest"
)

// The guest is shown the shape that it was given, also after a restore.
func TestShapeInside(t *testing.T) {
	t.Parallel()
	for _, s := range []engine.Shape{
		{CPUs: 1, MemoryBytes: 256 << 20, DiskBytes: 128 << 20, PidsMax: 100},
		{CPUs: 2, MemoryBytes: 1 << 30, DiskBytes: 3 << 30, PidsMax: 500},
		{CPUs: 1, MemoryBytes: 3000 << 20, DiskBytes: 20 << 30, PidsMax: 2048},
	} {
		t.Run(fmt.Sprintf("%d CPUs %d MB", s.CPUs, s.MemoryBytes>>20), func(t *testing.T) {
			t.Parallel()
			g := host.Start(t, s)
			shows(t, g, s)
			_, clones := restore(t, checkpoint(t, g), g, 1)
			shows(t, clones[0], s)
		})
	}
}

func shows(t *testing.T, g *enginetest.Guest, s engine.Shape) {
	t.Helper()
	if got := g.Must(t, "nproc"); got != strconv.Itoa(s.CPUs) {
		t.Errorf("nproc says %s, want %d", got, s.CPUs)
	}
	for what, want := range map[string]int64{
		"awk '/^MemTotal/ {print $2}' /proc/meminfo":              s.MemoryBytes >> 10,
		"df -k --output=size / | tail -1":                         s.DiskBytes >> 10,
		"free -k | awk '/^Mem:/ {print $2}'":                      s.MemoryBytes >> 10,
		"getconf _NPROCESSORS_ONLN":                               int64(s.CPUs),
		"grep -c ^processor /proc/cpuinfo":                        int64(s.CPUs),
		"df -k --output=size /tmp | tail -1":                      s.MemoryBytes >> 10,
		"awk '/^MemAvailable/ {print ($2>0)}' /proc/meminfo":      1,
		"df -k --output=avail / | tail -1 | awk '{print ($1>0)}'": 1,
	} {
		got, err := strconv.ParseInt(g.Must(t, what), 10, 64)
		if err != nil || got < want-want/100 || got > want+want/100 {
			t.Errorf("%s says %d, want %d (%v)", what, got, want, err)
		}
	}
	if !g.Hello.PidsLimit {
		t.Error("the agent could not set the limit on processes")
	}
}

// steady counts without starting processes.
const steady = `exec python3 -uc '
import itertools, time
for n in itertools.count(1):
    print(n)
    time.sleep(0.05)'`

// The limit of CPU time holds whenever the guest runs, and only the guest knows
// of it: see limitCPUs.
func TestCPULimitIsTheGuests(t *testing.T) {
	t.Parallel()
	groups, err := cgroup.Detect(host.Config.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	limit := func(when, generation string, cpus int) {
		t.Helper()
		want := groups.CPUs(generation, cpus)
		if b, err := os.ReadFile(want.File); err != nil || strings.TrimSpace(string(b)) != want.Value {
			t.Errorf("%s the limit is %q, want %q: %v", when, b, want.Value, err)
		}
	}
	g := host.Start(t, enginetest.Shape())
	limit("started,", g.Generation, 1)
	dir := checkpoint(t, g)
	limit("captured,", g.Generation, 1)
	c, held, err := host.CaptureHeld(t.Context(), g.Process, inMemory, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	limit("held,", g.Generation, 1)
	if err := held.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, clones := restore(t, dir, g, 1)
	limit("restored,", clones[0].Generation, 1)

	// A server that dies in the middle of a capture leaves it lifted.
	if err := groups.CPUs(g.Generation, 0).Apply(); err != nil {
		t.Fatal(err)
	}
	hostIn(t, t.TempDir()).Close()
	limit("adopted,", g.Generation, 1)
}

// A process that takes more memory than there is dies; nothing else does.
func TestMemoryHog(t *testing.T) {
	t.Parallel()
	s := enginetest.Shape()
	s.MemoryBytes = 256 << 20
	g := host.Start(t, s)
	counter := g.Begin(t, steady)
	rounds := 3
	if long() {
		rounds = 20
	}
	for i := range rounds {
		out, code, err := g.TryRun(t.Context(), `python3 -c '
b = []
while True: b.append(bytearray(16 << 20))'`)
		if err != nil || !host.Alive(g.Process) {
			t.Fatalf("round %d: the agent does not survive: %v; engine alive: %v %s", i, err, host.Alive(g.Process), host.LastWords(g.Process))
		}
		if code == 0 {
			t.Errorf("round %d: the hog exits with %d: %s", i, code, out)
		}
		counts(t, g, counter)
	}
	_, clones := restore(t, checkpoint(t, g), g, 1)
	counts(t, clones[0], counter)
}

// A fork bomb stays inside: the agent answers, the bomb can be killed, and the
// host has no more processes than the sandbox may have.
func TestForkBomb(t *testing.T) {
	t.Parallel()
	s := enginetest.Shape()
	s.PidsMax = 128
	g := host.Start(t, s)
	counter := g.Begin(t, steady)
	bomb := g.Begin(t, "bomb() { bomb | bomb & }; bomb; exec sleep 1000")
	enginetest.Eventually(t, "there are many processes", func() bool {
		return hostThreads(t, g) > 300
	})
	for range 20 {
		if n, most := hostThreads(t, g), (8+2*s.CPUs)*s.PidsMax+1024; n >= most {
			t.Fatalf("%d threads on the host, the limit is %d", n, most)
		}
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	if err := g.Agent.Signal(ctx, bomb, 9); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed after %v", time.Since(began))
	enginetest.Eventually(t, "commands run again", func() bool {
		out, code, err := g.TryRun(t.Context(), "echo fine")
		if !host.Alive(g.Process) {
			t.Fatalf("the engine died: %s", host.LastWords(g.Process))
		}
		return err == nil && code == 0 && out == "fine\n"
	})
	counts(t, g, counter)
}

// hostThreads counts the threads in a guest's cgroup.
func hostThreads(t *testing.T, g *enginetest.Guest) int {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/pids/%s/%s/pids.current", "/sys/fs/cgroup/%s/%s/pids.current"} {
		b, err := os.ReadFile(fmt.Sprintf(pattern, host.Config.Cgroup, g.Generation))
		if err == nil {
			n, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the pids cgroup is not where it is looked for")
	return 0
}

// A full disk is an error inside; the sandbox goes on and can be captured.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := enginetest.Shape()
	s.DiskBytes = 64 << 20
	g := host.Start(t, s)
	out, code := g.Run(t, "dd if=/dev/zero of=/root/big bs=1M count=200; rc=$?; stat -c %s /root/big; exit $rc")
	if code == 0 || !strings.Contains(out, "No space left") {
		t.Errorf("writing more than the disk holds: exit %d, %s", code, out)
	}
	if _, disk := host.Usage(g.Process); disk > s.DiskBytes+s.DiskBytes/8 {
		t.Errorf("the layer of %d bytes takes %d on the host", s.DiskBytes, disk)
	}
	dir := checkpoint(t, g)
	g.Must(t, "rm /root/big; echo again >/root/small")
	_, clones := restore(t, dir, g, 1)
	if _, code := clones[0].Run(t, "dd if=/dev/zero of=/root/more bs=1M count=5"); code == 0 {
		t.Error("the clone of a full disk is not full")
	}
	clones[0].Must(t, "rm /root/big; echo again >/root/small")
}

// Writable layers leave no name on the data disk.
func TestNoFilesOnTheDataDisk(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	if _, err := os.Stat(filepath.Join(host.Config.DiskDir, g.Generation)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory that it was made in is left: %v", err)
	}
}
