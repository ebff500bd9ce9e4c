// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/engine/gvisor"
)

// pair is a driver with a checkpoint of another build.
type pair struct {
	*gvisor.Driver
	cfg    gvisor.Config
	builds string // directory of the kept builds
	src    engine.Source
	dir    string // of the checkpoint
	source *enginetest.Guest
	count  string // the source's counter
}

// newPair has a guest with a heap of so many MB captured under another build:
// the one under test with something behind its end.
func newPair(t testing.TB, mb int, rate int64) *pair {
	t.Helper()
	dir := t.TempDir()
	b, err := os.ReadFile(host.Config.Binary)
	if err != nil {
		t.Fatal(err)
	}
	other := append(b, "another build"...)
	return pairOf(t, dir, other, mb, rate)
}

func pairOf(t testing.TB, dir string, other []byte, mb int, rate int64) *pair {
	t.Helper()
	binary := filepath.Join(dir, "other")
	if err := os.WriteFile(binary, other, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := host.Config
	cfg.BuildsDir, cfg.DiskDir, cfg.BulkRate = filepath.Join(dir, "engines"), filepath.Join(dir, "disks"), rate
	cfg.Binary = binary
	before, err := gvisor.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	spec := enginetest.Spec(t, enginetest.Shape())
	h, guest := enginetest.Pair(t)
	p, err := before.Start(t.Context(), spec, guest)
	if err != nil {
		t.Fatal(err)
	}
	g := host.Adopt(t, p, spec, h)
	count := fill(t, g, mb)
	c, err := before.Capture(t.Context(), p, inMemory)
	if err != nil {
		t.Fatal(err)
	}
	image := keep(t, c)
	cfg.Binary = host.Config.Binary
	d, err := gvisor.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	if before.Build() == d.Build() {
		t.Fatal("the builds are the same")
	}
	src := source(image)
	src.Build = before.Build()
	return &pair{Driver: d, cfg: cfg, builds: cfg.BuildsDir, src: src, dir: image, source: g, count: count}
}

// begin restores the checkpoint once, and gives how to greet the guest.
func (p *pair) begin(t testing.TB, src engine.Source) (engine.Restoring, func() *enginetest.Guest, error) {
	t.Helper()
	spec := enginetest.Spec(t, p.source.Spec.Shape)
	h, guest := enginetest.Pair(t)
	t.Cleanup(func() {
		if err := p.DestroyGeneration(context.Background(), spec.Generation); err != nil {
			t.Error(err)
		}
	})
	r, err := p.Restore(t.Context(), src, []engine.Target{{Spec: spec, Stdin: guest}})
	if err != nil {
		return nil, nil, err
	}
	t.Cleanup(r.Release)
	if err := r.Await(t.Context(), 0); err != nil {
		r.Release()
		return nil, nil, err
	}
	return r, func() *enginetest.Guest { return host.Adopt(t, r.Processes()[0], spec, h) }, nil
}

// helpers are the pids of the helpers of a kind that run from a build.
func (p *pair) helpers(build, kind string) (pids []int) {
	for pid, k := range helpersOf(filepath.Join(p.builds, build)) {
		if k == kind {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alone demands that a restore's processes have ended.
func (p *pair) alone(t *testing.T) {
	t.Helper()
	enginetest.Eventually(t, "pager and helper are gone", func() bool {
		hs := helpersOf(p.builds)
		return count(hs, "restore") == 0 && count(hs, "pager") == 0
	})
}

// A checkpoint of another build is restored by a pager of ours and a helper of
// that build's, which does not open the checkpoint; both go when it is loaded.
func TestRestoreByAPair(t *testing.T) {
	t.Parallel()
	p := newPair(t, 128, 40<<20)
	r, adopt, err := p.begin(t, p.src)
	if err != nil {
		t.Fatal(err)
	}
	pagers, helpers := p.helpers(p.Build(), "pager"), p.helpers(p.src.Build, "restore")
	if len(pagers) != 1 || len(helpers) != 1 || r.Pager().PID != helpers[0] || len(p.helpers(p.Build(), "restore")) != 0 {
		t.Fatalf("pagers %v, helpers %v, recorded %d", pagers, helpers, r.Pager().PID)
	}
	if n := opened(t, helpers[0], root(t, p.dir)); n != 0 {
		t.Errorf("the helper has %d files of the checkpoint open", n)
	}
	if n := opened(t, pagers[0], root(t, p.dir)); n == 0 {
		t.Error("the pager has no file of the checkpoint open")
	}
	clone := adopt()
	p.Hurry(r.Pager())
	intact(t, clone, p.count)
	awaitLoaded(t, r)
	r.Release()
	p.alone(t)
	intact(t, clone, p.count)
}

// opened counts the descriptors of a process that are files below dir.
func opened(t *testing.T, pid int, dir string) (n int) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}

// Whichever of the pair is killed, the sandbox that still loads is lost with a
// reason, and the other one goes too.
func TestOneOfThePairKilled(t *testing.T) {
	t.Parallel()
	p := newPair(t, 128, 10<<20)
	for kind, why := range map[string]string{"pager": "the pager is gone", "restore": "the pager ended before the sandbox was loaded"} {
		r, _, err := p.begin(t, p.src)
		if err != nil {
			t.Fatal(err)
		}
		build := p.Build()
		if kind == "restore" {
			build = p.src.Build
		}
		for _, pid := range p.helpers(build, kind) {
			victim, err := os.FindProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			if err := victim.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		awaitLost(t, r)
		if err := r.Err(0); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s killed: lost with %v", kind, err)
		}
		enginetest.Eventually(t, "its engine has ended", func() bool { return !p.Alive(r.Processes()[0]) })
		r.Release()
		p.alone(t)
	}
	r, adopt, err := p.begin(t, p.src)
	if err != nil {
		t.Fatal(err)
	}
	p.Hurry(r.Pager())
	intact(t, adopt(), p.count)
}

// A pager that hangs when its helper ends is ended by the next driver; before,
// it is left alone.
func TestHungPager(t *testing.T) {
	t.Parallel()
	p := newPair(t, 64, 10<<20)
	r, _, err := p.begin(t, p.src)
	if err != nil {
		t.Fatal(err)
	}
	pagers := p.helpers(p.Build(), "pager")
	if len(pagers) != 1 {
		t.Fatalf("pagers %v", pagers)
	}
	if err := unix.Kill(pagers[0], unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	next := func() {
		d, err := gvisor.New(p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	next()
	if now := p.helpers(p.Build(), "pager"); len(now) != 1 {
		t.Errorf("pagers %v beside a helper that restores", now)
	}
	if err := unix.Kill(r.Pager().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitLost(t, r)
	next()
	if now := p.helpers(p.Build(), "pager"); len(now) != 0 {
		t.Errorf("pagers %v without a helper", now)
	}
}

// What the pager finds wrong with a checkpoint is told like it is without one.
func TestPairAndDamage(t *testing.T) {
	t.Parallel()
	p := newPair(t, 32, 0)
	for _, name := range []string{"packs/*/*", "ckpt/*"} {
		for _, path := range stored(t, p.dir, name) {
			flip(t, path)
		}
		r, _, err := p.begin(t, p.src)
		if err == nil {
			awaitLost(t, r)
			err = r.Err(0)
			r.Release()
		}
		if err == nil || !strings.Contains(err.Error(), "checkpoint "+checkpointID+" is damaged") {
			t.Errorf("%s damaged: %v", name, err)
		}
		p.alone(t)
	}
	if err := os.RemoveAll(root(t, p.dir)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.begin(t, p.src); err == nil || !strings.Contains(err.Error(), "checkpoint "+checkpointID+" has no data in the store") {
		t.Errorf("removed: %v", err)
	}
	p.alone(t)
}

// firstBuild is a build that knows no pair, as a script of a directory where it
// notes that it was asked and a build that is run otherwise. It answers as the
// first builds do to any verb that they do not know.
const firstBuild = `#!/bin/sh
if [ "$2" = features ]; then
	echo asked >>%s/asked
	echo '{"event":"done","error":"helper: request \"features\" with 0 targets is not understood"}'
	exit 1
fi
exec %s "$@"
`

// A build that knows no pair is asked in its own way, and opens the checkpoint
// itself.
func TestRestoreByAFirstBuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := fmt.Sprintf(firstBuild, dir, host.Config.Binary)
	p := pairOf(t, dir, []byte(first), 32, 0)
	for range 2 {
		r, adopt, err := p.begin(t, p.src)
		if err != nil {
			t.Fatal(err)
		}
		if pagers := p.helpers(p.Build(), "pager"); len(pagers) != 0 {
			t.Errorf("pagers %v", pagers)
		}
		intact(t, adopt(), p.count)
		awaitLoaded(t, r)
	}
	for stamp, want := range map[string]bool{p.Requirements().Engine: true, "gvisor of another stamp": false} { // ours reads for it, or nobody
		if ok, err := p.ReadsStore(t.Context(), p.src.Build, stamp); err != nil || ok != want {
			t.Errorf("what it wrote as %q can be read from the store: %v, %v", stamp, ok, err)
		}
	}
	if asked, err := os.ReadFile(filepath.Join(dir, "asked")); err != nil || string(asked) != "asked\n" {
		t.Errorf("it was asked %q, %v", asked, err)
	}
}

// BenchmarkSpawn is the time from a restore to the first answer of the guest's
// shell: by one process of our build, by one of another build, and by a pair of
// which the helper is of another build. The other time is until all is loaded,
// in a hurry after that answer. The medians are reported.
func BenchmarkSpawn(b *testing.B) {
	p := newPair(b, 256, 0)
	ours, other := p.src, p.src
	ours.Build, other.Build = p.Build(), strings.Repeat("0", 64)
	path := filepath.Join(p.builds, other.Build, "oc")
	script := fmt.Sprintf(firstBuild, filepath.Dir(path), filepath.Join(p.builds, p.src.Build, "oc"))
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(script), 0o700)); err != nil {
		b.Fatal(err)
	}
	times, loads := map[string][]time.Duration{}, map[string][]time.Duration{} // by build
	spawn := func(src engine.Source) {
		start := time.Now()
		r, adopt, err := p.begin(b, src)
		if err != nil {
			b.Fatal(err)
		}
		g := adopt()
		g.Must(b, "true")
		times[src.Build] = append(times[src.Build], time.Since(start))
		p.Hurry(r.Pager())
		<-r.Loaded()
		loads[src.Build] = append(loads[src.Build], time.Since(start))
		r.Release()
		if err := p.DestroyGeneration(b.Context(), g.Generation); err != nil {
			b.Fatal(err)
		}
	}
	spawn(other) // which asks it what it can
	spawn(p.src)
	clear(times)
	clear(loads)
	for b.Loop() {
		for _, src := range []engine.Source{ours, other, p.src} {
			spawn(src)
		}
	}
	median := func(ds []time.Duration) float64 {
		slices.Sort(ds)
		return float64(ds[len(ds)/2]) / float64(time.Millisecond)
	}
	b.ReportMetric(median(times[ours.Build]), "ours-ms")
	b.ReportMetric(median(times[other.Build]), "other-ms")
	b.ReportMetric(median(times[p.src.Build]), "pair-ms")
	b.ReportMetric(median(times[p.src.Build])/median(times[other.Build]), "ratio")
	b.ReportMetric(median(loads[other.Build]), "other-loaded-ms")
	b.ReportMetric(median(loads[p.src.Build]), "pair-loaded-ms")
	b.ReportMetric(0, "ns/op")
}
