// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/store"
)

// host is where all tests of this package run their sandboxes.
var host *enginetest.Host

func TestMain(m *testing.M) {
	var err error
	if host, err = enginetest.NewHost(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := host.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// long tells whether larger counts are wanted.
func long() bool { return os.Getenv("OC_TEST_LONG") != "" }

// inMemory is a capture of all pages, through memory.
var inMemory = engine.CaptureOptions{Budget: 4 << 30}

const checkpointID = "cp-00000001"

// checkpoint captures a guest and stores the capture.
func checkpoint(t *testing.T, g *enginetest.Guest) (dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	c, err := host.Capture(ctx, g.Process, inMemory)
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	return keep(t, c)
}

// keep stores a capture in a store of its own and closes it.
func keep(t testing.TB, c *engine.Capture) (location string) {
	t.Helper()
	defer c.Close()
	return put(t, t.TempDir(), c)
}

// put stores a capture in a store in the directory.
func put(t testing.TB, dir string, c *engine.Capture) (location string) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir, State: t.TempDir(), Cache: t.TempDir(), CacheBytes: 1 << 30}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	id, _, err := s.Put(t.Context(), store.PutRequest{Manifest: store.Manifest{Checkpoint: checkpointID}, Capture: c})
	if err != nil {
		t.Fatal(err)
	}
	return s.Location(id)
}

// source is an artefact of this build.
func source(location string) engine.Source {
	return engine.Source{Location: location, Build: host.Build(), Engine: host.Requirements().Engine}
}

// restore brings up n guests like g from a checkpoint.
func restore(t *testing.T, dir string, g *enginetest.Guest, n int) (engine.Restoring, []*enginetest.Guest) {
	t.Helper()
	r, adopt := restoring(t, dir, g, n)
	guests := make([]*enginetest.Guest, n)
	for i := range guests {
		guests[i] = adopt(i)
	}
	return r, guests
}

// restoring is restore with the guests not greeted yet.
func restoring(t *testing.T, dir string, g *enginetest.Guest, n int) (engine.Restoring, func(i int) *enginetest.Guest) {
	t.Helper()
	targets := make([]engine.Target, n)
	hosts := make([]*os.File, n)
	for i := range targets {
		spec := enginetest.Spec(t, g.Spec.Shape)
		spec.Hostname = fmt.Sprintf("sb-clone-%d", i)
		h, guest := enginetest.Pair(t)
		hosts[i], targets[i] = h, engine.Target{Spec: spec, Stdin: guest}
	}
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Patience)
	defer cancel()
	r, err := host.Restore(ctx, source(dir), targets)
	if err != nil {
		t.Fatalf("restore: %v", err)
	}
	t.Cleanup(r.Release)
	for i := range targets {
		if err := r.Await(ctx, i); err != nil {
			t.Fatalf("restore, target %d: %v", i, err)
		}
	}
	return r, func(i int) *enginetest.Guest {
		return host.Adopt(t, r.Processes()[i], targets[i].Spec, hosts[i])
	}
}

// awaitLoaded waits until all of a restore is loaded, which it releases.
func awaitLoaded(t *testing.T, r engine.Restoring) {
	t.Helper()
	r.Release()
	enginetest.Eventually(t, "everything is loaded", func() bool {
		select {
		case <-r.Loaded():
			return true
		default:
			return false
		}
	})
	for i := range r.Processes() {
		if err := r.Err(i); err != nil {
			t.Fatalf("target %d: %v", i, err)
		}
	}
}

// gone demands that nothing of a generation exists on the host.
func gone(t *testing.T, id string) {
	t.Helper()
	left, err := host.Leftovers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		if l == id {
			t.Errorf("%s still exists", id)
		}
	}
	if _, err := os.Stat(filepath.Join(host.Config.RunDir, id)); !os.IsNotExist(err) {
		t.Errorf("the directory of %s: %v", id, err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), id) {
			t.Errorf("a process of %s runs: %q", id, b)
		}
	}
}
