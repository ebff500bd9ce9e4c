// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"syscall"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// stored is how many bytes a server's checkpoints take on the disk.
func stored(t *testing.T, s *harness.Server) int64 {
	t.Helper()
	var total int64
	err := filepath.WalkDir(filepath.Join(s.Data, "store"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			if st, err := os.Stat(path); err == nil {
				total += st.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		return err
	})
	must(t, err)
	return total
}

// TestDeleteFreesSpaceAndHurtsNoSpawnThatLoads deletes checkpoints under spawns
// that have barely begun to load them.
func TestDeleteFreesSpaceAndHurtsNoSpawnThatLoads(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"load-rate": slowLoad})
	b := create(t, s)
	b.heap(120, 21)
	sum := b.heapSum()
	empty := stored(t, s)
	cp := b.checkpoint("heap")
	if grown := stored(t, s) - empty; grown < 120<<20 {
		t.Errorf("the checkpoint takes %d bytes", grown)
	}
	list := asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id)
	if len(list) != 1 || list[0].SizeBytes < 120<<20 {
		t.Errorf("its size is shown as %+v", list)
	}
	clone := spawn(t, s, cp)
	if s.Loading() == 0 {
		t.Error("the spawn is loaded already")
	}
	if text := oc(t, s, "checkpoint", "delete", b.id, cp); text != "Checkpoint "+cp+" deleted." {
		t.Errorf("oc checkpoint delete: %s", text)
	}
	oc(t, s, "checkpoint", "delete", b.id, cp) // gone already is as good
	refused(t, s, 3, []string{"checkpoint not found"}, "checkpoint", "spawn", cp)
	if got := clone.heapSum(); got != sum {
		t.Errorf("the heap of the clone is %s, not %s", got, sum)
	}
	await(t, "the spawn is loaded", func() bool { return s.Loading() == 0 })
	await(t, "the space is given back", func() bool { return stored(t, s)-empty < 1<<20 })
	next := clone.checkpoint("of the clone")
	oc(t, s, "kill", b.id)
	if got := spawn(t, s, next).heapSum(); got != sum {
		t.Errorf("the heap of the clone's clone is %s, not %s", got, sum)
	}
}

// TestSpawnsWhileTheCheckpointIsDeleted ends each spawn in a whole sandbox or a
// clean refusal.
func TestSpawnsWhileTheCheckpointIsDeleted(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	c := api(t, shared)
	for round := range count(2, 10) {
		cp := b.checkpoint(fmt.Sprintf("round %d", round))
		type result struct {
			id  string
			err error
		}
		const spawns = 10
		results := make(chan result, spawns)
		for i := range spawns {
			go func() {
				<-time.After(time.Duration(i*40) * time.Millisecond)
				res, err := c.SpawnCheckpoint(t.Context(), cp, client.SpawnRequest{})
				results <- result{res.ID, err}
			}()
		}
		<-time.After(150 * time.Millisecond)
		oc(t, shared, "checkpoint", "delete", b.id, cp)
		made := 0
		for range spawns {
			r := <-results
			var refusal *client.Error
			switch {
			case r.err == nil:
				made++
				clone := adopt(t, shared, r.id)
				clone.countOn(3)
				clone.ticks()
				oc(t, shared, "kill", clone.id)
			case !errors.As(r.err, &refusal) || refusal.Status != 404 && refusal.Status != 409:
				t.Errorf("a spawn failed with %v", r.err)
			}
		}
		t.Logf("%d of %d spawns came before the delete", made, spawns)
	}
}

// TestKillDuringACheckpointLeavesNoFiles ends the sandbox at different moments
// of its checkpoint.
func TestKillDuringACheckpointLeavesNoFiles(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	source := create(t, s)
	source.heap(60, 5)
	cp := source.checkpoint("source")
	oc(t, s, "kill", source.id)
	before := stored(t, s)
	rounds := count(4, 20)
	for i := range rounds {
		b := spawn(t, s, cp)
		done := make(chan harness.Output, 1)
		go func() {
			out, _ := s.Run(t.Context(), nil, "checkpoint", "create", b.id, "--name", "cut")
			done <- out
		}()
		<-time.After(time.Duration(i*400/rounds) * time.Millisecond)
		oc(t, s, "kill", b.id)
		out := <-done
		for _, c := range asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id) {
			switch {
			case c.Status == client.CheckpointReady && out.Code == 0:
				oc(t, s, "checkpoint", "delete", b.id, c.ID)
			case c.Status != client.CheckpointFailed || c.ErrorMsg == "" || out.Code == 0:
				t.Errorf("round %d: %s is %s (%s), but\n%s", i, c.ID, c.Status, c.ErrorMsg, out)
			}
		}
		if left := stored(t, s) - before; left > 1<<20 {
			t.Errorf("round %d: %d bytes are left", i, left)
		}
	}
}

// TestLimitOfCheckpointsHoldsUnderParallelCreates asks for twenty at once where
// ten are allowed, and then makes room by retention.
func TestLimitOfCheckpointsHoldsUnderParallelCreates(t *testing.T) {
	t.Parallel()
	const limit, asked = 10, 20
	b := create(t, shared)
	results := make(chan harness.Output, asked)
	for i := range asked {
		go func() {
			out, err := shared.Run(t.Context(), nil, "checkpoint", "create", b.id, "--name", fmt.Sprintf("n%d", i))
			if err != nil {
				out.Stderr += err.Error()
			}
			results <- out
		}()
	}
	made := 0
	for range asked {
		switch out := <-results; out.Code {
		case 0:
			made++
		case 3, 4:
		default:
			t.Errorf("%s", out)
		}
	}
	if made != limit {
		t.Errorf("%d were made, the limit is %d", made, limit)
	}
	oc(t, shared, "checkpoint", "create", b.id, "--name", "newest", "--retention-policy", "delete_oldest", "--retention-max-count", "3")
	list := asJSON[[]client.Checkpoint](t, shared, "checkpoint", "list", b.id)
	if len(list) != 3 || list[0].Name != "newest" {
		t.Errorf("after the retention: %+v", list)
	}
	for _, c := range list {
		spawn(t, shared, c.ID).answers()
	}
}
