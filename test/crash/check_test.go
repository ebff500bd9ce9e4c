// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
)

// await waits until f gives no error.
func await(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	if err := patiently(f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// patiently tries f until it gives no error, and gives its last one.
func patiently(f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(poll):
		}
	}
}

// check compares what there is with what was promised. Two checkpoints, taken at
// random, are opened: one that was asked for, and one that the server made itself.
func (w *world) check(t *testing.T, victim string) {
	t.Helper()
	var running map[string]bool
	await(t, "the list of sandboxes", func(ctx context.Context) error {
		all, err := w.api().ListSandboxes(ctx, false)
		running = map[string]bool{}
		for _, sb := range all {
			running[sb.ID] = sb.Status == "running"
		}
		return err
	})
	var counting []string
	for id := range w.sandboxes {
		switch {
		case running[id]:
			counting = append(counting, id)
		case victim == "pager" && w.loading[id] != "":
			w.lostItsPager(t, id)
		default:
			t.Errorf("sandbox %s was promised and does not run", id)
		}
	}
	for id := range running {
		if _, promised := w.sandboxes[id]; !promised {
			w.kills(t, id) // unacknowledged, or lost
		}
	}
	w.checkCheckpoints(t)
	var wg sync.WaitGroup // of what takes long, side by side
	if cp := some(w, w.checkpoints); cp != "" {
		wg.Go(func() { w.opens(t, cp) })
	}
	if cp := some(w, w.automatic); cp != "" {
		wg.Go(func() { w.opens(t, cp) })
	}
	counts := make([]int, len(counting))
	for i, id := range counting {
		wg.Go(func() { counts[i], _ = w.counts(t, id, w.sandboxes[id]) })
	}
	wg.Wait()
	for i, id := range counting {
		w.sandboxes[id] = counts[i]
	}
	w.checkNothingLeaked(t)
}

// lostItsPager checks a sandbox that ended because its pager did, which is
// allowed: it says so, and what it was loading is as good as before.
func (w *world) lostItsPager(t *testing.T, id string) {
	t.Helper()
	delete(w.sandboxes, id)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sb, err := w.api().GetSandbox(ctx, id)
	if err != nil || sb.Status != client.StatusError || sb.Reason == "" {
		t.Errorf("sandbox %s, whose pager was killed, is %s (%s) %v", id, sb.Status, sb.Reason, err)
	}
	cp := w.loading[id]
	if _, err := w.api().VerifyCheckpoint(ctx, cp, nil); err != nil {
		t.Errorf("checkpoint %s, whose pager was killed: %v", cp, err)
	}
}

// goesOn prints what the counter shows, and then what it shows once that is
// another, or after some seconds; and the mark, where there is one.
const goesOn = `read -r a <n; b=$a
for ((i = 0; i < 50; i++)); do [ "$b" = "$a" ] || break; sleep 0.1; read -r b <n; done
[ ! -e mark ] || read -r mark <mark
echo "$a $b $mark"`

// counts checks that a sandbox's process never stepped back from least, and goes
// on. It gives how far it is, and the sandbox's mark.
func (w *world) counts(t *testing.T, id string, least int) (n int, mark string) {
	t.Helper()
	var first int
	err := patiently(func(ctx context.Context) error {
		res, err := w.api().RunExec(ctx, id, client.ExecRequest{Cmd: "bash", Args: []string{"-c", goesOn}})
		if err != nil {
			return err
		}
		if got, err := fmt.Sscan(res.Stdout, &first, &n, &mark); got < 2 {
			return fmt.Errorf("%q %q: %w", res.Stdout, res.Stderr, err)
		}
		if first >= least && n == first {
			return fmt.Errorf("it stands at %d", n)
		}
		return nil
	})
	if err != nil || first < least || n < first {
		t.Errorf("the counter of %s, which must show %d or more, went from %d to %d: %v", id, least, first, n, err)
	}
	return n, mark
}

// checkCheckpoints checks that nothing is half made, and that what said ready still
// does.
func (w *world) checkCheckpoints(t *testing.T) {
	t.Helper()
	await(t, "checkpoints being made or trimmed", func(ctx context.Context) error {
		w.automatic = map[string]bool{}
		for id := range w.sandboxes {
			list, err := w.api().ListCheckpoints(ctx, id)
			if err != nil {
				return err
			}
			kept := map[string]int{} // of automatic ones, by kind
			for _, cp := range list {
				switch {
				case cp.Status == client.CheckpointProcessing:
					return fmt.Errorf("checkpoint %s is %s", cp.ID, cp.Status)
				case cp.Automatic && cp.Status == client.CheckpointReady:
					kind, _, _ := strings.Cut(cp.Name, "-")
					kept[kind]++
					w.automatic[cp.ID] = true
				}
			}
			for kind, n := range kept {
				if n > keptOfAKind {
					return fmt.Errorf("%d checkpoints of %s are %q-…", n, id, kind)
				}
			}
		}
		return nil
	})
	for id := range w.checkpoints {
		var cp client.Checkpoint
		err := func() (err error) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cp, err = w.api().GetCheckpoint(ctx, id)
			return err
		}()
		if later := w.tries[w.owner[id]] - w.try[id]; client.IsNotFound(err) && later >= retained {
			delete(w.checkpoints, id) // trimmed by the retention of a later one
			continue
		}
		if err != nil || cp.Status != client.CheckpointReady {
			t.Errorf("checkpoint %s said ready and is %s %s (%v)", id, cp.Status, cp.ErrorMsg, err)
			continue
		}
	}
}

// keptOfAKind is how many automatic checkpoints of a kind a sandbox keeps, and one
// after which the server was killed: it goes with the next.
const keptOfAKind = 3 + 1

// opens spawns from a checkpoint and checks what the spawn holds, where that is
// known.
func (w *world) opens(t *testing.T, cp string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	res, err := w.api().SpawnCheckpoint(ctx, cp, client.SpawnRequest{})
	if err != nil {
		t.Errorf("spawning from %s, which said ready: %v", cp, err)
		return
	}
	id := res.All()[0].ID
	_, mark := w.counts(t, id, w.checkpoints[cp])
	if want, known := w.marks[cp]; known && mark != want {
		t.Errorf("the spawn of %s holds %q, not %q", cp, mark, want)
	}
	if err := patiently(func(ctx context.Context) error { return w.api().KillSandbox(ctx, id) }); err != nil {
		t.Errorf("killing the spawn of %s: %v", cp, err)
	}
}

func (w *world) kills(t *testing.T, id string) {
	t.Helper()
	delete(w.sandboxes, id)
	await(t, "killing "+id, func(ctx context.Context) error { return w.api().KillSandbox(ctx, id) })
}

// thin keeps the world small, and never without a sandbox and a checkpoint.
func (w *world) thin(t *testing.T) {
	t.Helper()
	const most = 3
	for len(w.sandboxes) > most {
		w.kills(t, some(w, w.sandboxes))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if len(w.sandboxes) == 0 {
		if err := w.create(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.checkpoints) == 0 { // the next round may need one to get to its point
		if err := w.checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
