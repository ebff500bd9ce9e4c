// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
)

// await waits until f gives no error.
func await(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(poll):
		}
	}
}

// check compares what there is with what was promised.
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
	for id := range w.sandboxes {
		switch {
		case running[id]:
			w.counts(t, id)
		case victim == "pager" && w.loading[id]:
			delete(w.sandboxes, id) // the engine dies with its pager: allowed, and said
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
	w.checkProcesses(t)
}

// counts checks that a sandbox's process never stepped back, and goes on.
func (w *world) counts(t *testing.T, id string) {
	t.Helper()
	least := w.sandboxes[id]
	first := -1
	await(t, "the counter of "+id, func(ctx context.Context) error {
		n, err := w.read(ctx, id)
		if err != nil {
			return err
		}
		if n < least {
			t.Fatalf("the counter of %s stepped back from %d to %d", id, least, n)
		}
		if first < 0 {
			first = n
		}
		if n <= first {
			return fmt.Errorf("it stands at %d", n)
		}
		w.sandboxes[id] = n
		return nil
	})
}

func (w *world) read(ctx context.Context, id string) (int, error) {
	res, err := w.api().RunExec(ctx, id, client.ExecRequest{Cmd: "cat", Args: []string{"n"}})
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(res.Stdout))
	if err != nil {
		return 0, fmt.Errorf("%q %q: %w", res.Stdout, res.Stderr, err)
	}
	return n, nil
}

// checkCheckpoints checks that nothing is half made, that what said ready still
// does, and that one of them, taken at random, holds what it must.
func (w *world) checkCheckpoints(t *testing.T) {
	t.Helper()
	await(t, "checkpoints being made", func(ctx context.Context) error {
		for id := range w.sandboxes {
			list, err := w.api().ListCheckpoints(ctx, id)
			if err != nil {
				return err
			}
			for _, cp := range list {
				if cp.Status == client.CheckpointProcessing {
					return fmt.Errorf("checkpoint %s is %s", cp.ID, cp.Status)
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
		if client.IsNotFound(err) {
			delete(w.checkpoints, id) // trimmed by the retention of a later one
			continue
		}
		if err != nil || cp.Status != client.CheckpointReady {
			t.Errorf("checkpoint %s said ready and is %s %s (%v)", id, cp.Status, cp.ErrorMsg, err)
			continue
		}
	}
	if id := some(w.rnd, w.checkpoints); id != "" {
		w.opens(t, id)
	}
}

// opens spawns from a checkpoint and checks what the spawn holds.
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
	w.sandboxes[id] = w.checkpoints[cp]
	w.counts(t, id)
	w.kills(t, id)
}

func (w *world) kills(t *testing.T, id string) {
	t.Helper()
	delete(w.sandboxes, id)
	await(t, "killing "+id, func(ctx context.Context) error { return w.api().KillSandbox(ctx, id) })
}

// checkProcesses checks that there is one engine per sandbox, and none besides
// the pool's.
func (w *world) checkProcesses(t *testing.T) {
	t.Helper()
	await(t, "processes", func(context.Context) error {
		engines := 0
		for _, p := range w.server.Processes() {
			if strings.HasPrefix(p.Args[0], "runsc-sandbox") {
				engines++
			}
		}
		if engines < len(w.sandboxes) || engines > len(w.sandboxes)+w.pool {
			return fmt.Errorf("%d engines for %d sandboxes", engines, len(w.sandboxes))
		}
		return nil
	})
}

// thin keeps the world small.
func (w *world) thin(t *testing.T) {
	t.Helper()
	const most = 3
	for len(w.sandboxes) > most {
		w.kills(t, some(w.rnd, w.sandboxes))
	}
	if len(w.sandboxes) == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.create(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
