// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

func decode(t *testing.T, record []byte) engine.Process {
	t.Helper()
	p, err := engine.DecodeProcess(record)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// damage changes a byte of a stored checkpoint.
func (n *node) damage(t *testing.T, id string) {
	t.Helper()
	n.damageAt(t, id, func([]byte) int { return 8 })
}

// damageAt changes a byte of the first pack of a stored checkpoint in which find
// gives its place.
func (n *node) damageAt(t *testing.T, id string, find func(pack []byte) int) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(n.dir, "packs", n.object(t, id), "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range packs {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := find(b)
		if !bytes.HasPrefix(b, []byte("OCPACK2\n")) || at < 0 {
			continue
		}
		b[at] ^= 1
		if err := errors.Join(os.Remove(path), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
		cached, err := filepath.Glob(filepath.Join(n.cache, "*"))
		for _, path := range cached { // which hides it
			err = errors.Join(err, os.Remove(path))
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the checkpoint has no pack")
}

// settled waits until only these sandboxes' generations exist, and demands that
// they do everywhere.
func (n *node) settled(t *testing.T, ids ...string) {
	t.Helper()
	var gens []string
	for _, id := range ids {
		gens = append(gens, n.sandbox(t, id).GenerationID)
	}
	sandboxtest.Eventually(t, "what was replaced is gone", func() bool {
		rows, err := n.Meta.Generations(t.Context())
		return err == nil && len(rows) == len(gens)
	})
	n.Exactly(t, gens...)
}

func TestRestore(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "before")
	c := n.checkpoint(t, sb.ID, "x")
	n.SetState(t, sb.ID, "after")
	l, err := n.sandboxes.Acquire(t.Context(), n.Org, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Fatal(err)
	}
	await(t, "the users of the old generation are told", l.Changed)
	if got := n.GetState(t, sb.ID); got != "before" {
		t.Errorf("its state is %q", got)
	}
	again, err := n.sandboxes.Acquire(t.Context(), n.Org, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Release()
	if _, err := again.Agent.Sessions(t.Context()); err != nil || again.Timeline == l.Timeline {
		t.Errorf("the new generation: %v, timeline %s, was %s", err, again.Timeline, l.Timeline)
	}
	n.settled(t, sb.ID)
	if next := n.checkpoint(t, sb.ID, "y"); next.ParentID != c.ID {
		t.Errorf("the next checkpoint descends from %q", next.ParentID)
	}
}

// The checkpoint of another sandbox brings its shape; what is the target's own
// stays.
func TestRestoreOfAnother(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	from, to := n.box(t, "theirs"), n.box(t, "mine")
	c := n.checkpoint(t, from.ID, "x")
	if err := n.checkpoints.Restore(t.Context(), n.Org, to.ID, c.ID); err != nil {
		t.Fatal(err)
	}
	if n.GetState(t, to.ID) != "theirs" || n.sandbox(t, to.ID).ID != to.ID {
		t.Error("not restored")
	}
	if list, err := n.checkpoints.List(t.Context(), n.Org, to.ID); err != nil || len(list) != 0 {
		t.Errorf("the checkpoint moved: %v, %v", list, err)
	}
	n.settled(t, from.ID, to.ID)
}

// Whatever fails before the switch, the sandbox runs on as it was, and nothing
// of the replacement is left.
func TestFailedRestore(t *testing.T) {
	t.Parallel()
	for _, step := range []string{sandboxtest.Restore, sandboxtest.Hold, "damage", "missing"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			sb := n.box(t, "before")
			c := n.checkpoint(t, sb.ID, "x")
			n.SetState(t, sb.ID, "after")
			old := n.sandbox(t, sb.ID).GenerationID
			want := errStep.Error()
			switch step {
			case "damage":
				n.damage(t, c.ID)
				want = "checkpoint " + c.ID + " is damaged"
			case "missing":
				if err := n.store.Delete(t.Context(), c.Object); err != nil {
					t.Fatal(err)
				}
				want = "checkpoint " + c.ID + " has no data"
			default:
				n.failAt(step, errStep)
			}
			err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("restore: %v, want %q", err, want)
			}
			n.Engine.Hook(nil)
			if n.sandbox(t, sb.ID).GenerationID != old || n.GetState(t, sb.ID) != "after" {
				t.Error("the sandbox is not as it was")
			}
			n.settled(t, sb.ID)
			l, err := n.sandboxes.Acquire(t.Context(), n.Org, sb.ID)
			if err != nil {
				t.Fatal(err)
			}
			l.Release()
			n.checkpoint(t, sb.ID, "y")
		})
	}
}

// Damage in what an earlier checkpoint has beside what this one uses is no reason
// not to restore it; damage in what it uses is found before anything is touched.
func TestRestoreBesideDamage(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const page, pages = 4096, 40
	first := make([]byte, pages*page)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(first) // never fails
	n.Engine.Pages = first
	sb := n.box(t, "first")
	a := n.checkpoint(t, sb.ID, "a")
	if _, err := n.store.Reindex(t.Context(), nil); err != nil { // so that the next one finds its pages
		t.Fatal(err)
	}
	n.Engine.Pages = append(bytes.Repeat([]byte("new!"), page/4), first[page:]...)
	n.SetState(t, sb.ID, "second")
	b := n.checkpoint(t, sb.ID, "b")
	n.SetState(t, sb.ID, "third")

	n.damageAt(t, a.ID, func(pack []byte) int { return bytes.Index(pack, first[:page]) })
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, b.ID); err != nil {
		t.Fatal(err)
	}
	if got := n.GetState(t, sb.ID); got != "second" {
		t.Errorf("its state is %q", got)
	}
	n.settled(t, sb.ID)
	old := n.sandbox(t, sb.ID).GenerationID

	n.damageAt(t, a.ID, func(pack []byte) int { return bytes.Index(pack, first[5*page:][:page]) })
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, b.ID); !fault.Is(err, fault.Damaged) || !strings.Contains(err.Error(), b.ID) {
		t.Errorf("restore: %v", err)
	}
	if got := n.row(t, b.ID); got.Status != meta.CheckpointDamaged {
		t.Errorf("the checkpoint is %s", got.Status)
	}
	if n.sandbox(t, sb.ID).GenerationID != old {
		t.Error("the sandbox is not as it was")
	}
	n.settled(t, sb.ID)
}

// A replacement that cannot go on after the switch is an error that is told,
// not a sandbox that seems to run.
func TestReplacementCannotGoOn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "before")
	c := n.checkpoint(t, sb.ID, "x")
	n.failAt(sandboxtest.Resume, errStep)
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); !errors.Is(err, errStep) {
		t.Errorf("restore: %v", err)
	}
	if row := n.sandbox(t, sb.ID); row.State != meta.SandboxError || !strings.Contains(row.Reason, "could not go on") {
		t.Errorf("%s: %s", row.State, row.Reason)
	}
	n.Engine.Hook(nil)
	sandboxtest.Eventually(t, "nothing is left", func() bool {
		rows, err := n.Meta.Generations(t.Context())
		return err == nil && len(rows) == 0
	})
	n.Empty(t)
	// One in error can be restored.
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Fatal(err)
	}
	if n.GetState(t, sb.ID) != "before" || n.sandbox(t, sb.ID).State != meta.SandboxRunning {
		t.Error("not restored")
	}
}

// Calls wait while one generation takes over, and go to the new one.
func TestCallsWaitForTheSwitch(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "before")
	c := n.checkpoint(t, sb.ID, "x")
	reached, letGo := n.holdAt(sandboxtest.Resume)
	defer letGo()
	done := make(chan error, 1)
	go func() { done <- n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID) }()
	await(t, "the switch", reached)
	lines := make(chan string, 4)
	var wg sync.WaitGroup
	for range cap(lines) {
		wg.Go(func() {
			l, err := n.sandboxes.Acquire(t.Context(), n.Org, sb.ID)
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Release()
			lines <- l.Timeline
		})
	}
	letGo()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	gen, err := n.Meta.Generation(t.Context(), n.sandbox(t, sb.ID).GenerationID)
	if err != nil {
		t.Fatal(err)
	}
	for range cap(lines) {
		if l := <-lines; l != gen.Timeline {
			t.Errorf("a call went to %s, the new timeline is %s", l, gen.Timeline)
		}
	}
}

// A kill ends a restore, and both generations.
func TestKillDuringRestore(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "x")
	reached, letGo := n.holdAt(sandboxtest.Restore)
	defer letGo()
	done := make(chan error, 1)
	go func() { done <- n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID) }()
	await(t, "the restore", reached)
	if err := n.sandboxes.Kill(t.Context(), n.Org, sb.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !fault.Is(err, fault.Gone) {
		t.Errorf("restore: %v", err)
	}
	n.Empty(t)
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); !fault.Is(err, fault.Invalid) || fault.As(err).Hint == "" {
		t.Errorf("restore of a stopped one: %v", err)
	}
}

func TestSpawn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "seed")
	c := n.checkpoint(t, sb.ID, "x")
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{
		Count: 4, Name: "w", TimeoutSec: 77, Envs: map[string]string{"K": "v"},
	})
	if err != nil || len(made) != 4 {
		t.Fatalf("%d, %v", len(made), err)
	}
	ids := []string{sb.ID}
	for i, m := range made {
		ids = append(ids, m.ID)
		row := n.sandbox(t, m.ID)
		if row.Name != "w-"+string(rune('1'+i)) || row.TimeoutSec != 77 || row.Envs["K"] != "v" || row.FromCheckpoint != c.ID || row.State != meta.SandboxRunning {
			t.Errorf("%+v", row)
		}
		if n.GetState(t, m.ID) != "seed" {
			t.Error("its state is not the checkpoint's")
		}
	}
	n.settled(t, ids...)
	n.SetState(t, made[0].ID, "own")
	if n.GetState(t, made[1].ID) != "seed" {
		t.Error("forks share their state")
	}
	for _, req := range []checkpoint.SpawnRequest{{Count: -1}, {Count: checkpoint.MaxSpawn + 1}, {TimeoutSec: -1}, {Envs: map[string]string{"1": ""}}} {
		if _, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", req, err)
		}
	}
	if _, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{Count: 101}); err == nil || err.Error() != "count is 101; it must be from 1 to 100" {
		t.Errorf("more than there may be: %v", err)
	}
	if _, err := n.checkpoints.Spawn(t.Context(), "org-x", c.ID, checkpoint.SpawnRequest{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("spawn of a foreign one: %v", err)
	}
	n.settled(t, ids...)
}

// If one of a spawn fails there is none.
func TestFailedSpawn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "seed")
	c := n.checkpoint(t, sb.ID, "x")
	restores := 0
	var mu sync.Mutex
	n.Engine.Hook(func(_ context.Context, step, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if step == sandboxtest.Restore {
			if restores++; restores == 3 {
				return errStep
			}
		}
		return nil
	})
	if _, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{Count: 4}); !errors.Is(err, errStep) {
		t.Errorf("spawn: %v", err)
	}
	n.settled(t, sb.ID)
	if rows, err := n.Meta.SandboxesAnyOrg(t.Context()); err != nil || len(rows) != 1 {
		t.Errorf("rows are left: %v, %v", rows, err)
	}
}

// A page that cannot be had after a spawn has returned turns the sandbox to
// error, with the reason.
func TestLostWhileLoading(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "seed")
	c := n.checkpoint(t, sb.ID, "x")
	reached, letGo := n.holdAt(sandboxtest.Load)
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the load", reached)
	if gen, err := n.Meta.Generation(t.Context(), made[0].GenerationID); err != nil || len(gen.Pager) == 0 {
		t.Errorf("a loading generation has no pager's record: %v", err)
	}
	letGo()
	sandboxtest.Eventually(t, "the load is recorded", func() bool {
		gen, err := n.Meta.Generation(t.Context(), made[0].GenerationID)
		return err == nil && len(gen.Pager) == 0
	})
	spawned := make(chan struct{})
	n.Engine.Hook(func(_ context.Context, step, generation string) error {
		if step != sandboxtest.Load {
			return nil
		}
		<-spawned
		// Its end is seen before the reason is told.
		p := engine.Process{Generation: generation}
		if gen, err := n.Meta.Generation(context.Background(), generation); err == nil {
			p, _ = engine.DecodeProcess(gen.Process) // one that cannot be read does not run
		}
		_ = n.Engine.Kill(generation) // never fails
		if exited, err := n.Engine.Exited(context.Background(), p); err == nil {
			<-exited
		}
		return errStep
	})
	made, err = n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{})
	close(spawned)
	if err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, "it is in error", func() bool { return n.sandbox(t, made[0].ID).State == meta.SandboxError })
	if reason := n.sandbox(t, made[0].ID).Reason; !strings.Contains(reason, errStep.Error()) {
		t.Errorf("the reason is %q", reason)
	}
}

// Spawns beside a delete are complete or a clean refusal.
func TestSpawnWhileDeleting(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "seed")
	for range 3 {
		c := n.checkpoint(t, sb.ID, "x")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				made, err := n.checkpoints.Spawn(t.Context(), n.Org, c.ID, checkpoint.SpawnRequest{})
				if err != nil {
					if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
						t.Errorf("spawn: %v", err)
					}
					return
				}
				if got := n.GetState(t, made[0].ID); got != "seed" {
					t.Errorf("a spawn has the state %q", got)
				}
				if err := n.sandboxes.Kill(t.Context(), n.Org, made[0].ID); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := n.checkpoints.Delete(t.Context(), n.Org, sb.ID, c.ID); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
		wg.Wait()
		if ids := n.stored(); len(ids) > 0 {
			t.Errorf("left in the store: %v", ids)
		}
	}
	n.settled(t, sb.ID)
}

func TestFork(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "seed")
	c, made, err := n.checkpoints.Fork(t.Context(), n.Org, sb.ID, checkpoint.SpawnRequest{Count: 2})
	if err != nil || len(made) != 2 || c.Status != meta.CheckpointReady || !c.Automatic || !strings.HasPrefix(c.Name, "fork-") {
		t.Fatalf("%+v, %d, %v", c, len(made), err)
	}
	n.failAt(sandboxtest.Capture, errStep)
	if c, made, err := n.checkpoints.Fork(t.Context(), n.Org, sb.ID, checkpoint.SpawnRequest{}); !errors.Is(err, errStep) || len(made) != 0 || n.row(t, c.ID).Status != meta.CheckpointFailed {
		t.Errorf("%+v, %d, %v", c, len(made), err)
	}
}

// loadingFork forks a sandbox in state "seed"; the fork loads until it is let go.
func (n *node) loadingFork(t *testing.T) (source meta.Sandbox, c meta.Checkpoint, fork meta.Sandbox, letGo func()) {
	t.Helper()
	n.Engine.Files = true
	source = n.box(t, "seed")
	_, letGo = n.holdAt(sandboxtest.Load)
	c, made, err := n.checkpoints.Fork(t.Context(), n.Org, source.ID, checkpoint.SpawnRequest{})
	if err != nil || len(made) != 1 || n.GetState(t, made[0].ID) != "seed" {
		letGo()
		t.Fatalf("%+v, %d, %v", c, len(made), err)
	}
	return source, c, made[0], letGo
}

// A fork's sandboxes load from the captured memory on their own: the end of the
// server waits for no load, and gives the memory back.
func TestForkLoadsOnWithoutTheServer(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	_, c, _, letGo := n.loadingFork(t)
	defer letGo()
	sandboxtest.Eventually(t, "the checkpoint is ready", func() bool { return n.row(t, c.ID).Status == meta.CheckpointReady })
	if held := n.Engine.Captures.Load(); held != 1 {
		t.Errorf("%d captures are held while the fork loads", held)
	}
	closed := make(chan struct{})
	go func() {
		n.stop()
		close(closed)
	}()
	await(t, "the server ends", closed)
	if held := n.Engine.Captures.Load(); held != 0 {
		t.Errorf("%d captures are held at the end", held)
	}
	letGo()
	n.start(t)
}

// Storing waits for the sandboxes of a fork, but not for long: while they come up
// the sandbox's turn is taken, and nothing of the checkpoint is durable.
func TestForkIsStoredWhileItsSandboxesComeUp(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.Engine.Files = true
	sb := n.box(t, "seed")
	held, letGo := n.holdAt(sandboxtest.Restore)
	defer letGo()
	forked := make(chan error, 1)
	var c meta.Checkpoint
	var made []meta.Sandbox
	go func() {
		var err error
		c, made, err = n.checkpoints.Fork(t.Context(), n.Org, sb.ID, checkpoint.SpawnRequest{})
		forked <- err
	}()
	await(t, "the fork comes up", held)
	sandboxtest.Eventually(t, "the checkpoint is ready", func() bool {
		all, err := n.checkpoints.List(t.Context(), n.Org, sb.ID)
		return err == nil && len(all) == 1 && all[0].Status == meta.CheckpointReady
	})
	letGo()
	if err := <-forked; err != nil || len(made) != 1 || n.GetState(t, made[0].ID) != "seed" || c.Status != meta.CheckpointReady {
		t.Errorf("%+v, %d, %v", c, len(made), err)
	}
}

// A sandbox that is killed as soon as it is forked leaves the fork and its checkpoint.
func TestKillAfterAFork(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb, c, made, letGo := n.loadingFork(t)
	defer letGo()
	if c.Status != meta.CheckpointProcessing {
		t.Fatalf("%+v", c)
	}
	if err := n.sandboxes.Kill(t.Context(), n.Org, sb.ID); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, "the checkpoint is ready", func() bool { return n.row(t, c.ID).Status == meta.CheckpointReady })
	letGo()
	for _, id := range []string{made.ID, n.spawn(t, c.ID).ID} {
		if got := n.GetState(t, id); got != "seed" {
			t.Errorf("%s is in state %q", id, got)
		}
	}
}
