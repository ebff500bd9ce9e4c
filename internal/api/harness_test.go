// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/agent"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

// agentRoot in the environment makes the test binary an agent with that root.
const agentRoot = "OC_API_TEST_AGENT_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(agentRoot); root != "" {
		_ = os.Unsetenv(agentRoot)
		agent.New(agent.Config{Channel: 0, Root: root, Log: slog.New(slog.DiscardHandler)}).Run()
	}
	os.Exit(m.Run())
}

// The keys of the two orgs, and their sandboxes.
const (
	keyA, keyB = "osb_a", "osb_b"
	boxA, boxB = "sb-0000000a", "sb-0000000b"
	goneA      = "sb-0000dead"
	cpA, cpB   = "cp-0000000a", "cp-0000000b"
	cpDamaged  = "cp-0000dead" // of org A
)

// world stands in for all services: two orgs with a running sandbox, a
// checkpoint and a template each.
type world struct {
	t   *testing.T
	url string
	srv *Server

	mu          sync.Mutex
	boxes       map[string]*box
	checkpoints []meta.Checkpoint
	lastCreate  sandbox.CreateRequest
	lastCP      checkpoint.CreateRequest
	lastSpawn   checkpoint.SpawnRequest
	leases      int
	fail        error    // of the next service call
	failAfter   error    // of calls of the storage, at their end
	lines       []string // progress that a long call makes
	imported    []byte
	exported    []byte // what an export writes; a failure comes after it
	stored      string // the last call of the storage
}

// box is a sandbox of the world; its agent is a real one, started at first use.
type box struct {
	row     meta.Sandbox
	host    *os.File
	agent   *agentclient.Client
	changed chan struct{}
	line    string // timeline
	root    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, boxes: map[string]*box{}}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for id, org := range map[string]string{boxA: "org-a", boxB: "org-b"} {
		w.boxes[id] = &box{row: meta.Sandbox{
			ID: id, OrgID: org, Template: "base", State: meta.SandboxRunning, CPUs: 1, MemoryMB: 1024,
			StartedAt: at, LastActiveAt: at, Envs: map[string]string{"FROM_BOX": "1", "BOTH": "box"},
		}}
	}
	w.boxes[goneA] = &box{row: meta.Sandbox{ID: goneA, OrgID: "org-a", State: meta.SandboxStopped, StoppedAt: &at}}
	w.checkpoints = []meta.Checkpoint{
		{ID: cpA, OrgID: "org-a", SandboxID: boxA, Name: "one", Kind: "full", Status: meta.CheckpointReady, CreatedAt: at, SizeBytes: 7, AddedBytes: 3},
		{ID: cpDamaged, OrgID: "org-a", SandboxID: goneA, Name: "three", Kind: "full", Status: meta.CheckpointDamaged, CreatedAt: at, ErrorMsg: "a pack is missing"},
		{ID: cpB, OrgID: "org-b", SandboxID: boxB, Name: "two", Kind: "full", Status: meta.CheckpointReady, CreatedAt: at},
	}
	srv, err := New(Config{
		Sandboxes: w, Checkpoints: worldCheckpoints{w}, Storage: worldStorage{w}, Templates: worldTemplates{w}, Keys: w,
		Log: slog.New(slog.DiscardHandler), SigningKey: []byte(strings.Repeat("k", 32)),
		MaxCPUs: 8, MaxMemoryMB: 16384, Version: "v1", APIURL: "http://x", DataDir: "/data",
	})
	if err != nil {
		t.Fatal(err)
	}
	w.srv = srv
	hs := httptest.NewUnstartedServer(srv)
	hs.Config = srv.HTTPServer()
	hs.Start()
	w.url = hs.URL
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		hs.Close()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.leases != 0 {
			t.Errorf("%d leases were not released", w.leases)
		}
	})
	return w
}

// client gives the SDK's client with a key.
func (w *world) client(key string) *client.Client {
	c, err := client.New(w.url, key)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// do makes a plain request of org A and gives status and body.
func (w *world) do(method, path, body string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-API-Key", keyA)
	return w.send(req)
}

func (w *world) send(req *http.Request) (int, string) {
	w.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data))
}

// failWith makes the next service call fail.
func (w *world) failWith(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

func (w *world) taken() error {
	err := w.fail
	w.fail = nil
	return err
}

// spawnAgent starts an agent process and greets it; w.mu is held.
func (w *world) spawnAgent(b *box) {
	t := w.t
	if b.root == "" {
		b.root = t.TempDir()
		for _, d := range []string{"root", "run", "etc"} {
			if err := os.Mkdir(filepath.Join(b.root, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	host, guest, err := agentclient.Pair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentRoot+"="+b.root)
	cmd.Stdin = guest
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also if this process is killed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	guest.Close()
	t.Cleanup(func() {
		// The agent adopts orphans, so all that it started is below it.
		for _, pid := range children(cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		host.Close()
	})
	b.host = host
	w.greet(b)
}

// children gives all processes below one.
func children(pid int) (all []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	parent := map[int]int{}
	for _, f := range stats {
		data, _ := os.ReadFile(f)
		var id, ppid int
		var state string
		_, rest, _ := strings.Cut(string(data), ") ")
		if _, err := fmt.Sscan(rest, &state, &ppid); err == nil {
			if _, err := fmt.Sscan(string(data), &id); err == nil {
				parent[id] = ppid
			}
		}
	}
	for id := range parent {
		for up := parent[id]; up > 1; up = parent[up] {
			if up == pid {
				all = append(all, id)
				break
			}
		}
	}
	return all
}

// greet connects to the box's agent under a new timeline; w.mu is held.
func (w *world) greet(b *box) {
	c, err := agentclient.New(b.host, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	b.line = meta.NewID("tl")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := c.Hello(ctx, agentclient.HelloRequest{Generation: meta.NewID("gn"), Timeline: b.line}); err != nil {
		w.t.Fatal(err)
	}
	b.agent, b.changed = c, make(chan struct{})
}

// restore does what an in-place restore looks like from here: to a checkpoint
// that knows the sessions, or to one that does not.
func (w *world) restore(id string, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.boxes[id]
	changed := b.changed
	b.agent.Close()
	if known {
		w.greet(b)
	} else {
		w.spawnAgent(b)
	}
	close(changed)
}

// stop ends a sandbox.
func (w *world) stop(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.boxes[id]
	b.row.State = meta.SandboxStopped
	close(b.changed)
}

func (w *world) box(orgID, id string) (*box, error) {
	if err := w.taken(); err != nil {
		return nil, err
	}
	b := w.boxes[id]
	if b == nil || b.row.OrgID != orgID {
		return nil, fault.New(fault.NotFound, "sandbox not found")
	}
	return b, nil
}

// The service of sandboxes.

func (w *world) Create(_ context.Context, orgID string, req sandbox.CreateRequest) (meta.Sandbox, error) {
	for _, l := range w.lines {
		req.Progress(l)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.taken(); err != nil {
		return meta.Sandbox{}, err
	}
	w.lastCreate = req
	return meta.Sandbox{
		ID: "sb-00000001", OrgID: orgID, Template: req.Template, State: meta.SandboxRunning, Name: req.Name,
		CPUs: 1, MemoryMB: 4096, TimeoutSec: req.TimeoutSec, StartedAt: time.Now(), LastActiveAt: time.Now(), Metadata: req.Metadata,
	}, nil
}

func (w *world) Get(_ context.Context, orgID, id string) (meta.Sandbox, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := w.box(orgID, id)
	if err != nil {
		return meta.Sandbox{}, err
	}
	return b.row, nil
}

func (w *world) List(_ context.Context, orgID string, all bool) ([]meta.Sandbox, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []meta.Sandbox
	for _, b := range w.boxes {
		if b.row.OrgID == orgID && (all || b.row.State != meta.SandboxStopped) {
			out = append(out, b.row)
		}
	}
	slices.SortFunc(out, func(a, b meta.Sandbox) int { return strings.Compare(a.ID, b.ID) })
	return out, w.taken()
}

func (w *world) Kill(_ context.Context, orgID, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.box(orgID, id)
	return err
}

func (*world) PoolStats() (hits, misses, ready int) { return 3, 1, 2 }

func (w *world) SetTimeout(_ context.Context, orgID, id string, seconds int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := w.box(orgID, id)
	if err == nil {
		b.row.TimeoutSec = seconds
	}
	return err
}

func (w *world) Acquire(_ context.Context, orgID, id string) (*sandbox.Lease, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := w.box(orgID, id)
	if err != nil {
		return nil, err
	}
	if b.row.State == meta.SandboxStopped {
		return nil, fault.New(fault.Gone, "sandbox %s has been stopped", id)
	}
	if b.agent == nil {
		w.spawnAgent(b)
	}
	w.leases++
	return sandbox.NewLease(b.agent, b.row, b.line, b.changed, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leases--
	}), nil
}

func (w *world) LookupKey(_ context.Context, plain string) (meta.Org, meta.Key, error) {
	switch plain {
	case keyA:
		return meta.Org{ID: "org-a", Name: "a"}, meta.Key{ID: "key-a"}, nil
	case keyB:
		return meta.Org{ID: "org-b", Name: "b"}, meta.Key{ID: "key-b"}, nil
	}
	return meta.Org{}, meta.Key{}, fault.New(fault.Forbidden, "invalid API key")
}

// worldCheckpoints is the service of checkpoints.
type worldCheckpoints struct{ w *world }

func (c worldCheckpoints) find(orgID, id string) (meta.Checkpoint, error) {
	if err := c.w.taken(); err != nil {
		return meta.Checkpoint{}, err
	}
	for _, cp := range c.w.checkpoints {
		if cp.ID == id && cp.OrgID == orgID {
			return cp, nil
		}
	}
	return meta.Checkpoint{}, fault.New(fault.NotFound, "checkpoint not found")
}

func (c worldCheckpoints) Create(_ context.Context, orgID, sandboxID string, req checkpoint.CreateRequest) (meta.Checkpoint, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if _, err := c.w.box(orgID, sandboxID); err != nil {
		return meta.Checkpoint{}, err
	}
	c.w.lastCP = req
	tell(req.Progress, 0, 0)
	tell(req.Progress, 4, 4)
	return meta.Checkpoint{ID: "cp-00000001", OrgID: orgID, SandboxID: sandboxID, Name: req.Name, Kind: req.Kind,
		Status: meta.CheckpointReady, CreatedAt: time.Now()}, nil
}

func (c worldCheckpoints) List(_ context.Context, orgID, sandboxID string) ([]meta.Checkpoint, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if _, err := c.w.box(orgID, sandboxID); err != nil {
		return nil, err
	}
	var out []meta.Checkpoint
	for _, cp := range c.w.checkpoints {
		if cp.SandboxID == sandboxID {
			out = append(out, cp)
		}
	}
	return out, nil
}

func (c worldCheckpoints) Get(_ context.Context, orgID, id string) (meta.Checkpoint, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return c.find(orgID, id)
}

func (c worldCheckpoints) Restore(_ context.Context, orgID, sandboxID, cpID string) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if _, err := c.w.box(orgID, sandboxID); err != nil {
		return err
	}
	_, err := c.find(orgID, cpID)
	return err
}

func (c worldCheckpoints) RestoreSaving(ctx context.Context, orgID, sandboxID, cpID string) (checkpoint.Saved, error) {
	return checkpoint.Saved{}, c.Restore(ctx, orgID, sandboxID, cpID)
}

func (c worldCheckpoints) Spawn(_ context.Context, orgID, cpID string, req checkpoint.SpawnRequest) ([]meta.Sandbox, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if _, err := c.find(orgID, cpID); err != nil {
		return nil, err
	}
	c.w.lastSpawn = req
	tell(req.Progress, 5, 5)
	var out []meta.Sandbox
	for range req.Count {
		out = append(out, meta.Sandbox{ID: meta.NewID("sb"), OrgID: orgID, State: meta.SandboxRunning, FromCheckpoint: cpID, TimeoutSec: req.TimeoutSec, MemoryMB: 1024})
	}
	return out, nil
}

func (c worldCheckpoints) Fork(ctx context.Context, orgID, sandboxID string, req checkpoint.SpawnRequest) (meta.Checkpoint, []meta.Sandbox, error) {
	cp, err := c.Create(ctx, orgID, sandboxID, checkpoint.CreateRequest{Name: "fork"})
	return cp, make([]meta.Sandbox, req.Count), err
}

func (c worldCheckpoints) Delete(_ context.Context, orgID, sandboxID, cpID string) error {
	return c.Restore(context.Background(), orgID, sandboxID, cpID)
}

func (c worldCheckpoints) Tree(_ context.Context, orgID, sandboxID string) ([]checkpoint.Node, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if sandboxID != "" {
		if _, err := c.w.box(orgID, sandboxID); err != nil {
			return nil, err
		}
	}
	if orgID != "org-a" {
		return nil, nil
	}
	return []checkpoint.Node{
		{Kind: checkpoint.NodeSandbox, ID: boxA, Status: "running"},
		{Kind: checkpoint.NodeCheckpoint, ID: cpA, Name: "one", Status: "ready", ParentID: boxA},
	}, nil
}

// worldTemplates is the catalogue.
type worldTemplates struct{ w *world }

func (c worldTemplates) List(context.Context, string) ([]meta.Template, error) {
	return []meta.Template{{ID: "tpl-1", Name: "base", Status: "ready", TreeHash: "h"}, {ID: "tpl-2", Name: "node", Status: "ready"}}, nil
}

func (c worldTemplates) Build(_ context.Context, _, name string, progress func(string)) (meta.Template, error) {
	for _, l := range c.w.lines {
		progress(l)
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return meta.Template{ID: "tpl-3", Name: name, Status: "ready"}, c.w.taken()
}

func (c worldTemplates) Import(ctx context.Context, orgID, name string, r io.Reader, progress func(string)) (meta.Template, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return meta.Template{}, err
	}
	c.w.mu.Lock()
	c.w.imported = data
	c.w.mu.Unlock()
	return c.Build(ctx, orgID, name, progress)
}

func (c worldTemplates) Delete(_ context.Context, _, name string) error {
	if name != "base" {
		return fault.New(fault.NotFound, "template not found: %s", name)
	}
	return nil
}
