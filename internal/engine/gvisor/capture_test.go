// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/engine/gvisor"
	"github.com/opencomputer/oc/internal/store"
)

// heap holds random memory in a process, and hashes it when /run/ask is made.
const heap = `exec python3 -c '
import hashlib, os, time
def put(name, text):
    with open(name + "~", "w") as f: f.write(text)
    os.rename(name + "~", name)
heap = bytearray(os.urandom(%d << 20))
put("/run/sum", hashlib.sha256(heap).hexdigest())
while True:
    if os.path.exists("/run/ask"):
        os.remove("/run/ask")
        put("/run/answer", hashlib.sha256(heap).hexdigest())
    time.sleep(0.01)
'`

// fill gives a guest a heap of so many MB, a file on its disk, and a process
// that counts; it gives the counter's session.
func fill(t testing.TB, g *enginetest.Guest, mb int) (counter string) {
	t.Helper()
	g.Begin(t, fmt.Sprintf(heap, mb))
	enginetest.Eventually(t, "the heap is filled", func() bool {
		_, code := g.Run(t, "test -f /run/sum")
		return code == 0
	})
	g.Must(t, "dd if=/dev/urandom of=/root/data bs=1M count=10 2>/dev/null; sha256sum /root/data >/root/data.sum")
	return g.Begin(t, "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
}

// intact demands that a guest has what fill gave it.
func intact(t *testing.T, g *enginetest.Guest, counter string) {
	t.Helper()
	g.Must(t, "rm -f /run/answer; touch /run/ask; while ! test -f /run/answer; do sleep 0.02; done; test \"$(cat /run/sum)\" = \"$(cat /run/answer)\"")
	g.Must(t, "cd / && sha256sum -c /root/data.sum")
	counts(t, g, counter)
}

// counts demands that a session's output goes on for a while, without a gap
// from its start.
func counts(t *testing.T, g *enginetest.Guest, session string) (last int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	o, err := g.Agent.Attach(ctx, session, agentclient.From{})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	defer o.Close()
	rest, live := "", 0
	for replayed := false; live < 5; {
		ev, err := o.Next(ctx)
		if err != nil {
			t.Fatalf("the counter after %d: %v", last, err)
		}
		replayed = replayed || ev.Kind == agentclient.EventReplayEnd
		rest += string(ev.Data)
		for {
			line, after, ok := strings.Cut(rest, "\n")
			if !ok {
				break
			}
			rest = after
			n, err := strconv.Atoi(line)
			if err != nil || n != last+1 {
				t.Fatalf("after %d the counter says %q", last, line)
			}
			last = n
			if replayed {
				live++
			}
		}
	}
	return last
}

// One checkpoint of a running sandbox gives two that go on from the same
// instant, and the source does not notice.
func TestCaptureAndRestore(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, 64)
	before := counts(t, g, counter)
	dir := checkpoint(t, g)
	intact(t, g, counter)
	g.Must(t, "rm /root/data; touch /root/after")
	r, clones := restore(t, dir, g, 2)
	if r.Pager().PID == 0 {
		t.Error("the pager has no record")
	}
	for i, c := range clones {
		if got := c.Must(t, "hostname"); got != fmt.Sprintf("sb-clone-%d", i) {
			t.Errorf("clone %d is called %q", i, got)
		}
		if n := counts(t, c, counter); n < before {
			t.Errorf("clone %d counts from %d, the checkpoint was after %d", i, n, before)
		}
		intact(t, c, counter)
		c.Must(t, "! test -e /root/after")
		c.Must(t, fmt.Sprintf("echo %d >/root/own", i))
	}
	if clones[0].Must(t, "cat /root/own") != "0" {
		t.Error("clones share their disk")
	}
	awaitLoaded(t, r)
	for _, c := range clones {
		intact(t, c, counter)
	}
}

// A sandbox that still loads can be captured: all of it is in the capture.
func TestCaptureWhileLoading(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, 128)
	dir := checkpoint(t, g)
	for range 2 { // of the clone, of the clone's clone
		r, clones := restore(t, dir, g, 1)
		host.Hurry(r.Pager())
		dir = checkpoint(t, clones[0])
		awaitLoaded(t, r)
		intact(t, clones[0], counter)
		g = clones[0]
	}
	_, clones := restore(t, dir, g, 1)
	intact(t, clones[0], counter)
}

// A held target does nothing until it is resumed.
func TestHold(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, 16)
	r, clones := restore(t, checkpoint(t, g), g, 1)
	if err := r.Hold(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	stopped(t, clones[0])
	if err := r.Resume(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	intact(t, clones[0], counter)
	if err := r.Hold(t.Context(), 7); err == nil {
		t.Error("a target that is none was held")
	}
	awaitLoaded(t, r)
	exited, err := host.Exited(t.Context(), r.Pager())
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-exited:
	case <-time.After(enginetest.Patience):
		t.Error("a released pager with nothing to do stays")
	}
	if err := r.Hold(t.Context(), 0); err == nil {
		t.Error("held by a pager that is gone")
	}
	intact(t, clones[0], counter)
}

// A capture that is broken off at any moment leaves the sandbox running, and
// the next capture complete.
func TestBrokenOffCapture(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, 128)
	step, share := 20*time.Millisecond, time.Duration(6) // of what went before: a capture may take long here
	if long() {
		step, share = 2*time.Millisecond, 60
	}
	errOff := errors.New("broken off by the test")
	broken := 0
	for after := time.Duration(0); ; after += max(step, after/share) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), after, errOff)
		c, err := host.Capture(ctx, g.Process, inMemory)
		cancel()
		if err == nil {
			c.Close()
			break
		}
		broken++
		if !errors.Is(err, errOff) {
			t.Fatalf("after %v: %v", after, err)
		}
		counts(t, g, counter)
	}
	if broken < 2 {
		t.Errorf("only %d captures were broken off", broken)
	}
	dir := checkpoint(t, g)
	intact(t, g, counter)
	_, clones := restore(t, dir, g, 1)
	intact(t, clones[0], counter)
}

// flip damages one byte of each 64 KiB of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const block = 64 << 10
	b := make([]byte, 1)
	for off := int64(100); off < st.Size(); off += block {
		if _, err := f.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		b[0] ^= 0x10
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
}

// Damage found while a restore begins fails it; nothing is left.
func TestDamagedCheckpoint(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	fill(t, g, 32)
	for _, name := range []string{"packs/*/*", "ckpt/*"} {
		dir := checkpoint(t, g)
		for _, path := range stored(t, dir, name) {
			flip(t, path)
		}
		spec := enginetest.Spec(t, g.Spec.Shape)
		_, guest := enginetest.Pair(t)
		r, err := host.Restore(t.Context(), source(dir), []engine.Target{{Spec: spec, Stdin: guest}})
		if err == nil { // it ran before a damaged page was needed: it must be lost soon
			awaitLost(t, r)
			err = r.Err(0)
			r.Release()
			if derr := host.DestroyGeneration(t.Context(), spec.Generation); derr != nil {
				t.Error(derr)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "checkpoint "+checkpointID+" is damaged") {
			t.Errorf("%s damaged: %v", name, err)
		}
		gone(t, spec.Generation)
	}
}

// stored are the files of the store of a location that match a pattern.
func stored(t *testing.T, location, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root(t, location), pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	return paths
}

// root is the directory of the store of a location.
func root(t *testing.T, location string) string {
	t.Helper()
	var l struct{ Store store.Config }
	if err := json.Unmarshal([]byte(location), &l); err != nil {
		t.Fatal(err)
	}
	return l.Store.Dir
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// awaitLost waits until a restore, which it releases, is over.
func awaitLost(t *testing.T, r engine.Restoring) {
	t.Helper()
	r.Release()
	select {
	case <-r.Loaded():
	case <-time.After(enginetest.Patience):
		t.Fatal("neither loaded nor lost")
	}
}

// Damage found later, in the bulk, ends the sandbox with the checkpoint's name
// rather than let it run on wrong memory.
func TestDamageFoundLate(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	fill(t, g, 128)
	dir := checkpoint(t, g)
	// The last pack has the last pages.
	large := slices.DeleteFunc(stored(t, dir, "packs/*/*"), func(path string) bool { return stat(t, path).Size() < 1<<20 })
	flip(t, slices.MaxFunc(large, func(a, b string) int { return stat(t, a).ModTime().Compare(stat(t, b).ModTime()) }))
	r, _ := restoring(t, dir, g, 1)
	p := r.Processes()[0]
	t.Cleanup(func() {
		if err := host.Destroy(context.Background(), p); err != nil {
			t.Error(err)
		}
	})
	awaitLost(t, r)
	if err := r.Err(0); err == nil || !strings.Contains(err.Error(), "checkpoint "+checkpointID+" is damaged") {
		t.Errorf("lost with: %v", err)
	}
	enginetest.Eventually(t, "its engine has ended", func() bool { return !host.Alive(p) })
}

// Whoever serves the pages is killed: the sandbox that still loads is lost
// with a reason.
func TestPagerKilled(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	fill(t, g, 128)
	r, _ := restoring(t, checkpoint(t, g), g, 1)
	p := r.Processes()[0]
	t.Cleanup(func() {
		if err := host.Destroy(context.Background(), p); err != nil {
			t.Error(err)
		}
	})
	pager, err := os.FindProcess(r.Pager().PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := pager.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitLost(t, r)
	if err := r.Err(0); err == nil || !strings.Contains(err.Error(), "pager") {
		t.Errorf("lost with: %v", err)
	}
}

// A checkpoint refers to no path: the data directory may move, and images,
// builds and disks with it.
func TestMovedDataDirectory(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	one, two := filepath.Join(parent, "one"), filepath.Join(parent, "elsewhere", "two")
	a := hostIn(t, one)
	defer a.Close()
	image := filepath.Join(one, "images", "x")
	copyFile(t, enginetest.Image(t), image)
	spec := enginetest.Spec(t, enginetest.Shape())
	spec.ImagePath = image
	h, guest := enginetest.Pair(t)
	p, err := a.Start(t.Context(), spec, guest)
	if err != nil {
		t.Fatal(err)
	}
	g := host.Adopt(t, p, spec, h) // destroyed below; then again, which is nothing
	counter := fill(t, g, 16)
	c, err := a.Capture(t.Context(), p, inMemory)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	where := put(t, filepath.Join(one, "store"), c)
	if err := errors.Join(a.Destroy(t.Context(), p), os.Mkdir(filepath.Dir(two), 0o700), os.Rename(one, two)); err != nil {
		t.Fatal(err)
	}
	b := hostIn(t, two)
	spec2 := enginetest.Spec(t, enginetest.Shape())
	spec2.ImagePath = filepath.Join(two, "images", "x")
	h2, guest2 := enginetest.Pair(t)
	r, err := b.Restore(t.Context(), source(strings.ReplaceAll(where, one, two)), []engine.Target{{Spec: spec2, Stdin: guest2}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.DestroyGeneration(context.Background(), spec2.Generation); err != nil {
			t.Error(err)
		}
		b.Close()
	})
	defer r.Release()
	if err := r.Await(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	intact(t, host.Adopt(t, r.Processes()[0], spec2, h2), counter)
}

// hostIn is another driver, with its data below dir.
func hostIn(t *testing.T, dir string, changes ...func(*gvisor.Config)) *gvisor.Driver {
	t.Helper()
	cfg := host.Config
	cfg.BuildsDir, cfg.DiskDir = filepath.Join(dir, "engines"), filepath.Join(dir, "disks")
	for _, change := range changes {
		change(&cfg)
	}
	d, err := gvisor.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o700)
	}
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A sandbox larger than the budget is captured through the disk, with the same
// result.
func TestCaptureThroughTheDisk(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, 32)
	c, err := host.Capture(t.Context(), g.Process, engine.CaptureOptions{Budget: 1})
	if err != nil {
		t.Fatal(err)
	}
	intact(t, g, counter)
	_, clones := restore(t, keep(t, c), g, 1)
	intact(t, clones[0], counter)
	if es, err := filepath.Glob(filepath.Join(host.Config.DiskDir, "capture-*")); err != nil || len(es) > 0 {
		t.Errorf("files are left on the disk: %v, %v", es, err)
	}
}
