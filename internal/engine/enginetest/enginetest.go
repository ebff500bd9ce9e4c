// SPDX-License-Identifier: Apache-2.0

// Package enginetest runs real sandboxes for tests.
//
// A test binary has one driver, below directories and a cgroup parent of its
// own, and ends with a check that nothing is left of any of them. Engines, their
// helpers and pagers run from the program that make build made, never from the
// test binary.
//
// The package is for tests only.
package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/agentbin"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/template/templatetest"
)

// Patience bounds what a test waits for: a loaded machine is slow.
const Patience = 2 * time.Minute

// Binary is the program of a node under test, as make build embeds it in oc.
func Binary() (string, error) {
	path := inTree("internal/nodebin/bin/oc-node")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the program under test is missing, run `make build`: %w", err)
	}
	return path, nil
}

// inTree gives a path of the source tree: tests run in their package's
// directory, and are told nothing else.
func inTree(path string) string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			return filepath.Join(dir, path)
		}
		dir = filepath.Dir(dir)
	}
	return path
}

// Host is where a test binary's sandboxes run.
type Host struct {
	*gvisor.Driver
	Config gvisor.Config
	root   string
}

// NewHost makes a host. Close it.
func NewHost() (_ *Host, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("sandboxes need root: run the tests with sudo")
	}
	bin, err := Binary()
	if err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp("", "oc-engines-")
	if err != nil {
		return nil, err
	}
	h := &Host{root: root}
	name := "opencomputer-test-" + strings.ToLower(rand.Text()[:8])
	h.Config = gvisor.Config{
		Binary: bin, BuildsDir: filepath.Join(root, "engines"), DiskDir: filepath.Join(root, "disks"),
		RunDir: "/run/" + name, Cgroup: name, Log: slog.New(slog.DiscardHandler),
	}
	if h.Driver, err = gvisor.New(h.Config); err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	return h, nil
}

// Close ends everything, and tells what the tests had left.
func (h *Host) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	left, err := h.Leftovers()
	for _, id := range left {
		err = errors.Join(err, fmt.Errorf("generation %s was left behind", id), h.DestroyGeneration(ctx, id))
	}
	h.Driver.Close()
	return errors.Join(err, os.RemoveAll(h.Config.RunDir), os.RemoveAll(h.root))
}

// Image is the small image with this tree's agent.
func Image(t testing.TB) string {
	t.Helper()
	agent, err := agentbin.Binary()
	if err != nil {
		t.Fatal(err)
	}
	return templatetest.Image(t, agent).Path
}

// Shape is that of a sandbox for a test that does not care.
func Shape() engine.Shape {
	return engine.Shape{CPUs: 1, MemoryBytes: 512 << 20, DiskBytes: 1 << 30, PidsMax: 512}
}

// Guest is a generation with an agent that answers.
type Guest struct {
	engine.Process
	Agent *agentclient.Client
	Hello agentclient.HelloReply
	Spec  engine.Spec
	h     *Host
}

// Spec is one for a new generation.
func Spec(t testing.TB, s engine.Shape) engine.Spec {
	t.Helper()
	return engine.Spec{Generation: meta.NewID("gn"), ImagePath: Image(t), Hostname: "sb-test", Shape: s}
}

// Start starts a generation that ends with the test.
func (h *Host) Start(t testing.TB, s engine.Shape) *Guest {
	t.Helper()
	spec := Spec(t, s)
	host, guest := Pair(t)
	p, err := h.Driver.Start(t.Context(), spec, guest)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return h.Adopt(t, p, spec, host)
}

// Pair is the two ends of an agent's channel, closed with the test.
func Pair(t testing.TB) (host, guest *os.File) {
	t.Helper()
	host, guest, err := agentclient.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

// Adopt greets a generation that was just started or restored; it ends with
// the test.
func (h *Host) Adopt(t testing.TB, p engine.Process, spec engine.Spec, host *os.File) *Guest {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if err := h.Destroy(ctx, p); err != nil {
			t.Errorf("destroy %s: %v", p.Generation, err)
		}
	})
	agent, err := agentclient.New(host, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	hello, err := agent.Hello(ctx, agentclient.HelloRequest{Generation: spec.Generation, Timeline: meta.NewID("tl")})
	if err != nil {
		t.Fatalf("the agent of %s: %v", p.Generation, err)
	}
	id, entropy := make([]byte, 16), make([]byte, 64)
	_, _ = rand.Read(id) // never fails
	_, _ = rand.Read(entropy)
	if err := agent.SetIdentity(ctx, agentclient.Identity{
		Hostname: spec.Hostname, MachineID: hex.EncodeToString(id), Entropy: entropy, Generation: spec.Generation,
	}); err != nil {
		t.Fatalf("the identity of %s: %v", p.Generation, err)
	}
	return &Guest{Process: p, Agent: agent, Hello: hello, Spec: spec, h: h}
}

// Begin starts a shell script in the guest, as root, and gives its session.
func (g *Guest) Begin(t testing.TB, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	s, err := g.Agent.Start(ctx, agentclient.StartRequest{Argv: []string{"/bin/sh", "-c", script}, User: "root"})
	if err != nil {
		t.Fatalf("start %.60q: %v", script, err)
	}
	return s.ID
}

// Run runs a shell script in the guest, as root, and gives what it printed on
// both streams, and its exit code.
func (g *Guest) Run(t testing.TB, script string) (out string, code int) {
	t.Helper()
	out, code, err := g.TryRun(t.Context(), script)
	if err != nil {
		t.Fatalf("run %.60q: %v", script, err)
	}
	return out, code
}

// TryRun is Run for a guest that may not answer.
func (g *Guest) TryRun(ctx context.Context, script string) (out string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	s, err := g.Agent.Start(ctx, agentclient.StartRequest{Argv: []string{"/bin/sh", "-c", script}, User: "root"})
	if err != nil {
		return "", 0, err
	}
	o, err := g.Agent.Attach(ctx, s.ID, agentclient.From{})
	if err != nil {
		return "", 0, err
	}
	defer o.Close()
	var b bytes.Buffer
	for {
		ev, err := o.Next(ctx)
		if errors.Is(err, io.EOF) {
			return b.String(), code, nil
		}
		if err != nil {
			return b.String(), 0, err
		}
		b.Write(ev.Data)
		if ev.Exit != nil {
			code = ev.Exit.Code
		}
	}
}

// Must is Run of a script that must succeed.
func (g *Guest) Must(t testing.TB, script string) string {
	t.Helper()
	out, code := g.Run(t, script)
	if code != 0 {
		t.Fatalf("%.60q exits with %d: %s", script, code, out)
	}
	return strings.TrimSpace(out)
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(Patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("timed out waiting until %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
