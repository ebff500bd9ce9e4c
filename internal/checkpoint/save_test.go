// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// restores restores with the present state saved.
func (n *node) restores(t *testing.T, sandboxID, checkpointID string) checkpoint.Saved {
	t.Helper()
	saved, err := n.checkpoints.RestoreSaving(t.Context(), n.Org, sandboxID, checkpointID)
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

// automatic are a sandbox's automatic checkpoints of a status, newest first.
func (n *node) automatic(t *testing.T, sandboxID string, status meta.CheckpointStatus) (ids []string) {
	t.Helper()
	rows, err := n.checkpoints.List(t.Context(), n.Org, sandboxID)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Automatic && r.Status == status {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// keeps waits until just these saved states of a sandbox are kept, newest first.
func (n *node) keeps(t *testing.T, sandboxID string, want ...string) {
	t.Helper()
	sandboxtest.Eventually(t, fmt.Sprint("kept are ", want), func() bool {
		return slices.Equal(n.automatic(t, sandboxID, meta.CheckpointReady), want)
	})
}

// A restore can be undone: what it replaced is an automatic checkpoint, outside
// the sandbox's limit, of which the newest three are kept.
func TestSavedStates(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "first")
	c := n.checkpoint(t, sb.ID, "cp-0")
	for i := 1; i < checkpoint.MaxPerSandbox; i++ {
		n.checkpoint(t, sb.ID, fmt.Sprint("cp-", i))
	}
	var want []string
	for i := range 5 {
		n.SetState(t, sb.ID, fmt.Sprint("state ", i))
		saved := n.restores(t, sb.ID, c.ID)
		got := saved.Checkpoint
		if got == nil || saved.Note != "" || got.Status != meta.CheckpointReady || got.Unverified || !got.Automatic ||
			!regexp.MustCompile(`^before-restore-[0-9a-f]{8}$`).MatchString(got.Name) {
			t.Fatalf("%+v (%s)", got, saved.Note)
		}
		if n.GetState(t, sb.ID) != "first" {
			t.Error("it was not restored")
		}
		want = append([]string{got.ID}, want...)
	}
	n.settled(t, sb.ID)
	n.keeps(t, sb.ID, want[:3]...)
	undone := n.restores(t, sb.ID, want[2]) // which goes for it, when it is not needed any more
	if n.GetState(t, sb.ID) != "state 2" || undone.Checkpoint == nil {
		t.Errorf("undone, it is %q", n.GetState(t, sb.ID))
	}
	n.keeps(t, sb.ID, undone.Checkpoint.ID, want[0], want[1])
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil { // without
		t.Fatal(err)
	}
	n.keeps(t, sb.ID, undone.Checkpoint.ID, want[0], want[1])
}

// What a restore replaced and could not be ended is known as that: it is ended later.
func TestReplacedThatCannotBeEnded(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "c")
	n.Keeper.FailDrops(errStep)
	defer n.Keeper.FailDrops(nil)
	n.restores(t, sb.ID, c.ID)
	sandboxtest.Eventually(t, "it is noted as ending", func() bool {
		g, err := n.Meta.Generation(t.Context(), sb.GenerationID)
		return err == nil && g.State == meta.GenerationEnding
	})
}

// A saved state that failed takes no good one's place among the newest three.
func TestFailedSavedStatesDoNotCount(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "c")
	good := []string{n.restores(t, sb.ID, c.ID).Checkpoint.ID, n.restores(t, sb.ID, c.ID).Checkpoint.ID}
	n.failAt(sandboxtest.Capture, errStep)
	for range 3 {
		_, err := n.checkpoints.RestoreSaving(t.Context(), n.Org, sb.ID, c.ID)
		if f := fault.As(err); !errors.Is(err, errStep) || !strings.Contains(f.Hint, "--no-save") {
			t.Fatalf("a state that cannot be saved: %v (%s)", err, f.Hint)
		}
	}
	n.failAt("", nil)
	if failed := n.automatic(t, sb.ID, meta.CheckpointFailed); len(failed) != 3 {
		t.Fatalf("failed are %v", failed)
	}
	last := n.restores(t, sb.ID, c.ID).Checkpoint.ID
	n.keeps(t, sb.ID, last, good[1], good[0])
	n.restores(t, sb.ID, c.ID)
	n.restores(t, sb.ID, c.ID)
	sandboxtest.Eventually(t, "failed ones that are older than all that are kept are gone", func() bool {
		return len(n.automatic(t, sb.ID, meta.CheckpointFailed)) == 0
	})
}

// A sandbox that is not well is saved without its agent, and one whose engine has
// ended is restored with nothing saved; the answer says so.
func TestSavedStateOfASickSandbox(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "first")
	c := n.checkpoint(t, sb.ID, "c")
	n.SetState(t, sb.ID, "sick")
	gen, err := n.Meta.Generation(t.Context(), sb.GenerationID)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Engine.Pause(t.Context(), decode(t, gen.Process)); err != nil { // with its agent
		t.Fatal(err)
	}
	saved := n.restores(t, sb.ID, c.ID)
	if got := saved.Checkpoint; got == nil || !got.Unverified || !n.row(t, got.ID).Unverified || !strings.Contains(saved.Note, "unverified") {
		t.Errorf("%+v (%s)", got, saved.Note)
	}
	if got := n.GetState(t, sb.ID); got != "first" {
		t.Errorf("restored, it is %q", got)
	}
	if err := n.Engine.Kill(n.sandbox(t, sb.ID).GenerationID); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, "its engine's end is known", func() bool { return n.sandbox(t, sb.ID).State == meta.SandboxError })
	if saved := n.restores(t, sb.ID, c.ID); saved.Checkpoint != nil || !strings.Contains(saved.Note, "nothing to save") {
		t.Errorf("of a dead engine was saved %+v (%s)", saved.Checkpoint, saved.Note)
	}
	if row := n.sandbox(t, sb.ID); row.State != meta.SandboxRunning || row.Reason != "" || n.GetState(t, sb.ID) != "first" {
		t.Errorf("restored, it is %+v", row)
	}
	n.settled(t, sb.ID)
	// It may end of what ails it just when it is to be saved.
	n.Engine.Hook(func(_ context.Context, step, gen string) error {
		if step != sandboxtest.Capture {
			return nil
		}
		return errors.Join(errStep, n.Engine.Kill(gen))
	})
	if saved := n.restores(t, sb.ID, c.ID); saved.Checkpoint != nil || !strings.Contains(saved.Note, "nothing to save") {
		t.Errorf("of an engine that died of it was saved %+v (%s)", saved.Checkpoint, saved.Note)
	}
	if row := n.sandbox(t, sb.ID); row.State != meta.SandboxRunning || n.GetState(t, sb.ID) != "first" {
		t.Errorf("restored, it is %+v", row)
	}
	n.failAt("", nil)
	n.settled(t, sb.ID)
}

// A server ended after a switch, before what was replaced was stored: the next one
// stops the replaced generation before it lets the other go on, and saves it
// beside its work.
func TestSavedAfterACrash(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb, old := n.box(t, "new"), n.box(t, "old")
	c := n.checkpoint(t, sb.ID, "c")
	gens := map[string]meta.Generation{}
	for _, id := range []string{sb.GenerationID, old.GenerationID} {
		g, err := n.Meta.Generation(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		gens[id] = g
	}
	n.stop()
	held, saving := gens[sb.GenerationID], gens[old.GenerationID]
	held.State = meta.GenerationHeld
	saving.State, saving.SandboxID = meta.GenerationSaving, sb.ID
	if err := errors.Join(
		n.Engine.Pause(t.Context(), decode(t, held.Process)), n.Meta.UpdateGeneration(t.Context(), &held),
		n.Meta.UpdateGeneration(t.Context(), &saving), n.Meta.DeleteSandboxRow(t.Context(), old.ID),
	); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var steps []string
	started := make(chan struct{})
	n.Engine.Hook(func(ctx context.Context, step, gen string) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case step == sandboxtest.Pause && gen == saving.ID, step == sandboxtest.Resume && gen == held.ID:
			steps = append(steps, step)
		case step == sandboxtest.Capture:
			mu.Unlock()
			defer mu.Lock()
			select { // nobody waits for it
			case <-started:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	n.start(t)
	// Nothing that happens to the sandbox meanwhile takes that from it.
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Error(err)
	}
	if err := n.Engine.Kill(n.sandbox(t, sb.ID).GenerationID); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, "its engine's end is known", func() bool { return n.sandbox(t, sb.ID).State == meta.SandboxError })
	if err := n.checkpoints.Restore(t.Context(), n.Org, sb.ID, c.ID); err != nil {
		t.Error(err)
	}
	close(started)
	mu.Lock()
	if want := []string{sandboxtest.Pause, sandboxtest.Resume}; !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
	mu.Unlock()
	if got := n.GetState(t, sb.ID); got != "new" {
		t.Errorf("it is %q", got)
	}
	n.settled(t, sb.ID)
	ids := n.automatic(t, sb.ID, meta.CheckpointReady)
	if len(ids) != 1 || !n.row(t, ids[0]).Unverified {
		t.Fatalf("saved: %v", ids)
	}
	made, err := n.checkpoints.Spawn(t.Context(), n.Org, ids[0], checkpoint.SpawnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := n.GetState(t, made[0].ID); got != "old" {
		t.Errorf("saved was %q", got)
	}
}

// After a restore that did not take place the sandbox is as it was: the next one
// saves it.
func TestSavedAfterOneInVain(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	sb := s.box(t, "first")
	c := s.checkpoint(t, sb.ID, "c")
	s.SetState(t, sb.ID, "second")
	ctx, cancel := context.WithCancel(t.Context())
	s.engine.held = cancel
	if _, err := s.checkpoints.RestoreSaving(ctx, s.Org, sb.ID, c.ID); !errors.Is(err, context.Canceled) {
		t.Fatalf("a restore that is given up: %v", err)
	}
	s.engine.held = nil
	if g, err := s.Meta.Generation(t.Context(), s.sandbox(t, sb.ID).GenerationID); err != nil || g.State != meta.GenerationLive {
		t.Errorf("its generation is %s: %v", g.State, err)
	}
	if saved := s.restores(t, sb.ID, c.ID); saved.Checkpoint == nil || saved.Checkpoint.Status != meta.CheckpointReady {
		t.Errorf("saved: %+v (%s)", saved.Checkpoint, saved.Note)
	}
}

// A sandbox whose agent is silent is not frozen for that: an engine that is not
// frozen would not survive being let go on.
func TestSilentSandboxIsNotLetGoOn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "c")
	gen, err := n.Meta.Generation(t.Context(), sb.GenerationID)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Engine.Pause(t.Context(), decode(t, gen.Process)); err != nil { // with its agent
		t.Fatal(err)
	}
	n.Engine.Hook(func(_ context.Context, step, id string) error {
		if step == sandboxtest.Resume && id == gen.ID {
			t.Error("it was let go on")
		}
		if step == sandboxtest.Capture {
			return errStep
		}
		return nil
	})
	if _, err := n.checkpoints.RestoreSaving(t.Context(), n.Org, sb.ID, c.ID); !errors.Is(err, errStep) {
		t.Errorf("a state that cannot be saved: %v", err)
	}
	n.Engine.Hook(nil)
	if g, err := n.Meta.Generation(t.Context(), gen.ID); err != nil || g.State != meta.GenerationLive {
		t.Errorf("its generation is %s: %v", g.State, err)
	}
}

// Whether an engine is frozen is known to who was to freeze it: that its agent has
// fallen silent meanwhile is no reason to let it go on.
func TestFailedSaveLetsNothingGoOn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	c := n.checkpoint(t, sb.ID, "c")
	gen, err := n.Meta.Generation(t.Context(), sb.GenerationID)
	if err != nil {
		t.Fatal(err)
	}
	n.Engine.Hook(func(ctx context.Context, step, id string) error {
		switch {
		case step == sandboxtest.Resume && id == gen.ID:
			t.Error("it was let go on")
		case step == sandboxtest.Capture:
			return errors.Join(errStep, n.Engine.Pause(ctx, decode(t, gen.Process)))
		}
		return nil
	})
	if _, err := n.checkpoints.RestoreSaving(t.Context(), n.Org, sb.ID, c.ID); !errors.Is(err, errStep) {
		t.Errorf("a state that cannot be saved: %v", err)
	}
	n.Engine.Hook(nil)
}

// While the saving of what a restore replaces is prepared, calls are answered, and
// what they do is saved; from the freeze on they wait for what replaces it, or for
// the end of a restore that fails.
func TestCallsUntilTheFreeze(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]string{"restored": "", "not ready": sandboxtest.Ready, "not captured": sandboxtest.Capture, "not committed": "commit"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			sb := n.box(t, "first")
			c := n.checkpoint(t, sb.ID, "c")
			n.SetState(t, sb.ID, "second")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			call := func(patience time.Duration) error {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				l, err := n.sandboxes.Acquire(ctx, n.Org, sb.ID)
				if err != nil {
					return err
				}
				defer l.Release()
				_, err = l.Agent.Sessions(ctx)
				return err
			}
			n.Engine.Hook(func(_ context.Context, step, id string) error {
				switch {
				case id != sb.GenerationID:
					return nil
				case step == sandboxtest.Ready:
					if err := call(sandboxtest.Patience); err != nil {
						t.Errorf("before the freeze: %v", err)
					}
					n.SetState(t, sb.ID, "third")
				case step == sandboxtest.Capture:
					if err := call(50 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("in the freeze: %v", err)
					}
					if fails == "commit" {
						cancel()
					}
				}
				if step == fails {
					return errStep
				}
				return nil
			})
			saved, err := n.checkpoints.RestoreSaving(ctx, n.Org, sb.ID, c.ID)
			if (err != nil) != (fails != "") {
				t.Fatalf("the restore: %v", err)
			}
			n.Engine.Hook(nil)
			if err := call(sandboxtest.Patience); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			n.settled(t, sb.ID)
			if fails == "" {
				n.restores(t, sb.ID, saved.Checkpoint.ID)
				n.settled(t, sb.ID)
			}
			if got := n.GetState(t, sb.ID); got != "third" {
				t.Errorf("it is %q", got)
			}
		})
	}
}

// A server ended while a sandbox was frozen to be replaced: who froze it lets it go
// on, not the next server, which takes it as it is.
func TestFrozenOverACrash(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	sb := n.box(t, "s")
	g, err := n.Meta.Generation(t.Context(), sb.GenerationID)
	if err != nil {
		t.Fatal(err)
	}
	n.stop()
	g.State = meta.GenerationFreezing
	if err := n.Meta.UpdateGeneration(t.Context(), &g); err != nil {
		t.Fatal(err)
	}
	n.Engine.Hook(func(_ context.Context, step, _ string) error {
		if step == sandboxtest.Resume {
			t.Error("the next server let it go on")
		}
		return nil
	})
	n.start(t)
	n.settled(t, sb.ID)
	if g, err := n.Meta.Generation(t.Context(), g.ID); err != nil || g.State != meta.GenerationLive {
		t.Errorf("its generation is %s: %v", g.State, err)
	}
}
