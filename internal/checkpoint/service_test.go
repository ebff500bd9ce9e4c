// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
	"github.com/opencomputer/oc/internal/store"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// node is a server on a world: both services and the store.
type node struct {
	*sandboxtest.World
	dir, spool  string
	state       string // the store's
	cache       string
	store       *store.Store
	sandboxes   *sandbox.Service
	checkpoints *checkpoint.Service
	free        atomic.Int64 // of the data disk
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{World: sandboxtest.New(t), dir: filepath.Join(t.TempDir(), "checkpoints"), spool: t.TempDir()}
	n.free.Store(1 << 40)
	n.start(t)
	t.Cleanup(func() { n.stop() })
	return n
}

// start is the start of a server.
func (n *node) start(t *testing.T) {
	t.Helper()
	n.openStore(t)
	n.sandboxes = sandbox.New(n.Config(t))
	n.checkpoints = checkpoint.New(checkpoint.Config{
		Meta: n.Meta, Sandboxes: n.sandboxes, Engine: n.Engine, Images: n.World, Store: n.store, Budget: 1 << 30, Log: n.Log,
		DataFree: func() (int64, error) { return n.free.Load(), nil }, Spool: n.spool,
	})
	if err := errors.Join(n.checkpoints.Start(t.Context()), n.sandboxes.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func (n *node) openStore(t *testing.T) {
	t.Helper()
	var err error
	n.state, n.cache = t.TempDir(), filepath.Join(t.TempDir(), "cache")
	n.store, err = store.Open(t.Context(), store.Config{Dir: n.dir, State: n.state, Cache: n.cache, CacheBytes: 1 << 30}, n.Log)
	if err != nil {
		t.Fatal(err)
	}
}

// stop is its end.
func (n *node) stop() {
	n.checkpoints.Close()
	n.sandboxes.Close()
	n.store.Close()
}

// stored are the checkpoints in the store, in order.
func (n *node) stored() []string { return slices.Sorted(maps.Values(n.store.List())) }

// object is the object of a checkpoint.
func (n *node) object(t *testing.T, id string) string {
	t.Helper()
	return n.row(t, id).Object
}

func (n *node) box(t *testing.T, state string) meta.Sandbox {
	t.Helper()
	sb, err := n.sandboxes.Create(t.Context(), n.Org, sandbox.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n.SetState(t, sb.ID, state)
	return sb
}

func (n *node) checkpoint(t *testing.T, sandboxID, name string) meta.Checkpoint {
	t.Helper()
	c, err := n.checkpoints.Create(t.Context(), n.Org, sandboxID, checkpoint.CreateRequest{Name: name})
	if err != nil {
		t.Fatalf("checkpoint %s: %v", name, err)
	}
	return c
}

// spawn makes a sandbox of a checkpoint.
func (n *node) spawn(t *testing.T, id string) meta.Sandbox {
	t.Helper()
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, id, checkpoint.SpawnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return made[0]
}

func (n *node) row(t *testing.T, id string) meta.Checkpoint {
	t.Helper()
	c, err := n.Meta.CheckpointAnyOrg(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (n *node) sandbox(t *testing.T, id string) meta.Sandbox {
	t.Helper()
	sb, err := n.Meta.SandboxAnyOrg(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// failAt makes the engine's step fail.
func (n *node) failAt(step string, err error) {
	n.Engine.Hook(func(_ context.Context, s, _ string) error {
		if s == step {
			return err
		}
		return nil
	})
}

// holdAt makes the engine wait at a step until it is let go or its caller
// leaves; reached is closed at the first one.
func (n *node) holdAt(step string) (reached <-chan struct{}, letGo func()) {
	at, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	n.Engine.Hook(func(ctx context.Context, s, _ string) error {
		if s != step {
			return nil
		}
		once.Do(func() { close(at) })
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return at, sync.OnceFunc(func() { close(free) })
}

func await(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(sandboxtest.Patience):
		t.Fatalf("timed out: %s", what)
	}
}

var errStep = errors.New("the step broke")

func TestCreate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "one")
	c := n.checkpoint(t, sb.ID, "first")
	if c.Status != meta.CheckpointReady || c.ReadyAt == nil || c.SizeBytes != 3 || c.AddedBytes <= c.SizeBytes || c.Kind != "full" || c.ParentID != "" {
		t.Errorf("%+v", c)
	}
	if got := n.row(t, c.ID); got.Status != meta.CheckpointReady || got.CPUs != sb.CPUs || got.MemoryMB != sb.MemoryMB {
		t.Errorf("its row: %+v", got)
	}
	img, err := n.store.Image(t.Context(), c.Object)
	if err != nil {
		t.Fatal(err)
	}
	if m := img.Manifest(); m.Sandbox != sb.ID || m.ImageHash != sandboxtest.ImageHash || m.Shape.CPUs != sb.CPUs {
		t.Errorf("its manifest: %+v", m)
	}
	img.Close()
	second := n.checkpoint(t, sb.ID, "second")
	if second.ParentID != c.ID {
		t.Errorf("the second descends from %q", second.ParentID)
	}
	list, err := n.checkpoints.List(t.Context(), n.Org, sb.ID)
	if err != nil || len(list) != 2 || list[0].ID != second.ID {
		t.Errorf("List: %v, %v", list, err)
	}
	if n.GetState(t, sb.ID) != "one" || n.sandbox(t, sb.ID).State != meta.SandboxRunning {
		t.Error("the sandbox noticed")
	}
}

// Who watches is told from the beginning to the end how far it is.
func TestCreateWatched(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "one")
	var mu sync.Mutex
	var told [][2]int64
	c, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", Progress: func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, [2]int64{done, total})
	}})
	if err != nil || c.Status != meta.CheckpointReady {
		t.Fatalf("%+v, %v", c, err)
	}
	if want := [][2]int64{{0, 0}, {4096, 4096}}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "")
	n.checkpoint(t, sb.ID, "taken")
	stopped := n.box(t, "")
	if err := n.sandboxes.Kill(t.Context(), n.Org, stopped.ID); err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		org, id string
		req     checkpoint.CreateRequest
		kind    fault.Kind
	}{
		"unknown sandbox": {n.Org, "sb-none", checkpoint.CreateRequest{Name: "x"}, fault.NotFound},
		"foreign sandbox": {"org-x", sb.ID, checkpoint.CreateRequest{Name: "x"}, fault.NotFound},
		"stopped sandbox": {n.Org, stopped.ID, checkpoint.CreateRequest{Name: "x"}, fault.Invalid},
		"no name":         {n.Org, sb.ID, checkpoint.CreateRequest{}, fault.Invalid},
		"long name":       {n.Org, sb.ID, checkpoint.CreateRequest{Name: strings.Repeat("x", 101)}, fault.Invalid},
		"DEL in the name": {n.Org, sb.ID, checkpoint.CreateRequest{Name: "a\x7fb"}, fault.Invalid},
		"C1 in the name":  {n.Org, sb.ID, checkpoint.CreateRequest{Name: "a\u009bb"}, fault.Invalid},
		"taken name":      {n.Org, sb.ID, checkpoint.CreateRequest{Name: "taken"}, fault.Conflict},
		"disk only":       {n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", Kind: "disk_only"}, fault.Invalid},
		"kind":            {n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", Kind: "half"}, fault.Invalid},
		"mode":            {n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", Retention: checkpoint.Retention{Mode: "x"}}, fault.Invalid},
		"count":           {n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", Retention: checkpoint.Retention{Mode: "delete_oldest", MaxCount: 11}}, fault.Invalid},
	} {
		if _, err := n.checkpoints.Create(t.Context(), tt.org, tt.id, tt.req); !fault.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %s", what, err, tt.kind)
		}
	}
	if list, err := n.checkpoints.List(t.Context(), n.Org, sb.ID); err != nil || len(list) != 1 {
		t.Errorf("rows are left: %v, %v", list, err)
	}
	n.checkpoint(t, sb.ID, strings.Repeat("ä", 100)) // characters, not bytes
}

// A checkpoint that fails says why, leaves nothing in the store, and frees its
// name; the sandbox runs on.
func TestFailedCreate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "kept")
	n.failAt(sandboxtest.Capture, errStep)
	if _, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "x"}); !errors.Is(err, errStep) {
		t.Errorf("create: %v", err)
	}
	list, err := n.checkpoints.List(t.Context(), n.Org, sb.ID)
	if err != nil || len(list) != 1 || list[0].Status != meta.CheckpointFailed || list[0].ErrorMsg != errStep.Error() || list[0].FailedAt == nil {
		t.Fatalf("its row: %+v, %v", list, err)
	}
	if _, err := n.checkpoints.Spawn(t.Context(), n.Org, list[0].ID, checkpoint.SpawnRequest{}); !fault.Is(err, fault.Invalid) || !strings.Contains(fault.As(err).Hint, errStep.Error()) {
		t.Errorf("spawn of a failed one: %v", err)
	}
	n.Engine.Hook(nil)
	if ids := n.stored(); len(ids) > 0 {
		t.Errorf("left in the store: %v", ids)
	}
	n.checkpoint(t, sb.ID, "x")
	if n.GetState(t, sb.ID) != "kept" {
		t.Error("the sandbox noticed")
	}
}

// Checkpoints of one sandbox are made one after the other; all get ready.
func TestParallelCreates(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	var at, most atomic.Int32
	n.Engine.Hook(func(context.Context, string, string) error {
		most.Store(max(most.Load(), at.Add(1)))
		runtime.Gosched()
		at.Add(-1)
		return nil
	})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			c, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: fmt.Sprint(i)})
			if err != nil || c.Status != meta.CheckpointReady {
				t.Errorf("%d: %s, %v", i, c.Status, err)
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d captures at once", most.Load())
	}
}

// The limit holds however many are made at once, and good ones are not given
// up for ones that fail.
func TestLimit(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	var wg sync.WaitGroup
	var made atomic.Int32
	for i := range 2 * checkpoint.MaxPerSandbox {
		wg.Go(func() {
			_, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: fmt.Sprint(i)})
			if err == nil {
				made.Add(1)
			} else if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "limit") {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if made.Load() != checkpoint.MaxPerSandbox {
		t.Errorf("%d were made, the limit is %d", made.Load(), checkpoint.MaxPerSandbox)
	}
	n.failAt(sandboxtest.Capture, errStep)
	oldest := checkpoint.Retention{Mode: "delete_oldest", MaxCount: 3}
	if _, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "bad", Retention: oldest}); !errors.Is(err, errStep) {
		t.Errorf("create: %v", err)
	}
	if ids := n.stored(); len(ids) != checkpoint.MaxPerSandbox {
		t.Errorf("after a failure %d are left", len(ids))
	}
	n.Engine.Hook(nil)
	c, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "new", Retention: oldest})
	if err != nil {
		t.Fatal(err)
	}
	ids := n.stored()
	if len(ids) != 3 || !slices.Contains(ids, c.ID) {
		t.Errorf("after retention %v are left", ids)
	}
	// Automatic ones are outside of it all.
	if _, _, err := n.checkpoints.Fork(t.Context(), n.Org, sb.ID, checkpoint.SpawnRequest{}); err != nil {
		t.Error(err)
	}
	for i := range checkpoint.MaxPerSandbox - 3 {
		n.checkpoint(t, sb.ID, fmt.Sprintf("again %d", i))
	}
}

// Without waiting the row comes back processing, and gets ready by itself; also
// when the caller leaves.
func TestNoWait(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	reached, letGo := n.holdAt(sandboxtest.Capture)
	defer letGo()
	c, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", NoWait: true})
	if err != nil || c.Status != meta.CheckpointProcessing {
		t.Fatalf("%+v, %v", c, err)
	}
	await(t, "the capture", reached)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	left, err := n.checkpoints.Create(ctx, n.Org, sb.ID, checkpoint.CreateRequest{Name: "y"})
	if err == nil && left.Status != meta.CheckpointProcessing || err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who left: %+v, %v", left, err)
	}
	if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("Delete while it is made: %v", err)
	}
	letGo()
	// A restore waits for it.
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Errorf("restore of one that was being made: %v", err)
	}
	if got := n.row(t, c.ID); got.Status != meta.CheckpointReady {
		t.Errorf("it is %s", got.Status)
	}
}

// A kill ends a checkpoint that is being made, and nothing of it is left.
func TestKillDuringCheckpoint(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	reached, letGo := n.holdAt(sandboxtest.Capture)
	defer letGo()
	c, err := n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the capture", reached)
	if err := n.sandboxes.Kill(t.Context(), n.Org, sb.ID); err != nil {
		t.Fatal(err)
	}
	n.Empty(t)
	sandboxtest.Eventually(t, "it has failed", func() bool { return n.row(t, c.ID).Status == meta.CheckpointFailed })
	if got := n.row(t, c.ID); !strings.Contains(got.ErrorMsg, "was killed") {
		t.Errorf("its reason: %s", got.ErrorMsg)
	}
	if ids := n.stored(); len(ids) > 0 {
		t.Errorf("left in the store: %v", ids)
	}
}

// A kill does not wait for the storing of what is captured, and does not end it.
func TestKillWhileACheckpointIsStored(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	storing, killed := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(storing) })
	made := make(chan error, 1)
	var c meta.Checkpoint
	go func() {
		var err error
		c, err = n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "x", Progress: func(_, total int64) {
			if total > 0 {
				once()
				<-killed
			}
		}})
		made <- err
	}()
	await(t, "it is being stored", storing)
	if err := n.sandboxes.Kill(t.Context(), n.Org, sb.ID); err != nil {
		t.Fatal(err)
	}
	n.Empty(t)
	close(killed)
	if err := <-made; err != nil || c.Status != meta.CheckpointReady {
		t.Fatalf("%+v: %v", c, err)
	}
	if made := n.spawn(t, c.ID); n.GetState(t, made.ID) != "s" {
		t.Errorf("a sandbox of it is in state %q", n.GetState(t, made.ID))
	}
}

// A sandbox whose agent does not answer is not frozen, whatever else goes on before
// that.
func TestSickSandbox(t *testing.T) {
	t.Parallel()
	for name, hung := range map[string]bool{"ready": false, "its engine hangs too": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			sb := n.box(t, "s")
			run, err := n.Meta.Generation(t.Context(), sb.GenerationID)
			if err != nil {
				t.Fatal(err)
			}
			p := decode(t, run.Process)
			if err := n.Engine.Pause(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			var frozen atomic.Bool
			n.Engine.Hook(func(ctx context.Context, step, _ string) error {
				if step == sandboxtest.Ready && hung {
					<-ctx.Done()
					return context.Cause(ctx)
				}
				frozen.CompareAndSwap(false, step == sandboxtest.Capture)
				return nil
			})
			_, err = n.checkpoints.Create(t.Context(), n.Org, sb.ID, checkpoint.CreateRequest{Name: "x"})
			if !fault.Is(err, fault.Unavailable) || fault.As(err).Hint == "" || frozen.Load() {
				t.Errorf("create: %v, frozen: %v", err, frozen.Load())
			}
			n.Engine.Hook(nil)
			if err := n.Engine.Resume(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			n.checkpoint(t, sb.ID, "x")
		})
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb, other := n.box(t, "s"), n.box(t, "o")
	c := n.checkpoint(t, sb.ID, "x")
	for what, tt := range map[string]struct {
		org, sandbox, id string
		kind             fault.Kind
	}{
		"foreign":       {"org-x", sb.ID, c.ID, fault.NotFound},
		"other sandbox": {n.Org, other.ID, c.ID, fault.Invalid},
		"unknown":       {n.Org, sb.ID, "cp-none", fault.NotFound},
	} {
		if err := n.checkpoints.Delete(t.Context(), tt.org, tt.sandbox, tt.id); !fault.Is(err, tt.kind) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("Delete again: %v", err)
	}
	if ids := n.stored(); len(ids) > 0 {
		t.Errorf("left in the store: %v", ids)
	}
	n.checkpoint(t, sb.ID, "x") // the name is free
}
