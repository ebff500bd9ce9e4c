// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// workload has a new sandbox run the program of the benchmarks, with so many MB
// of random memory.
func workload(t *testing.T, s *harness.Server, mb int) box {
	t.Helper()
	guest := filepath.Join(t.TempDir(), "guest")
	must(t, harness.BuildGuest(t.Context(), guest))
	b := create(t, s, "--memory", strconv.Itoa(mb+512))
	oc(t, s, "push", b.id, guest, "guest")
	b.sh("chmod +x guest")
	b.start("./guest", "serve")
	b.ask("fill " + strconv.Itoa(mb))
	return b
}

// ask asks that program.
func (b box) ask(request string) string {
	b.t.Helper()
	return b.sh("./guest ask " + request)
}

// pause is how long a process inside stood still at the longest while f ran.
func (b box) pause(f func()) time.Duration {
	b.t.Helper()
	b.ask("tick")
	f()
	us, err := strconv.Atoi(b.ask("gap"))
	must(b.t, err)
	return time.Duration(us) * time.Microsecond
}

// TestPauseIsShortWhileASandboxStillLoads makes checkpoints of a spawned and of
// a restored sandbox at once: what they lack is loaded before the pause, not in
// it. Not in parallel, because it measures; tried again, because the machine may
// be busy with something else all the same.
func TestPauseIsShortWhileASandboxStillLoads(t *testing.T) {
	const tries, factor = 4, 2
	source := workload(t, shared, count(200, 1024))
	sum := source.ask("sum")
	cp := source.checkpoint("source")
	for try := range tries {
		settled := source.pause(func() { source.dropped() })
		clone := spawn(t, shared, cp)
		if shared.Loading() == 0 {
			t.Fatal("the spawn is loaded already")
		}
		spawned := clone.pause(func() { clone.dropped() })
		clone.restore(cp)
		if shared.Loading() == 0 {
			t.Fatal("the restored sandbox is loaded already")
		}
		restored := clone.pause(func() { clone.dropped() })
		if got := clone.ask("sum"); got != sum {
			t.Fatalf("the sum of the memory is %s, not %s", got, sum)
		}
		t.Logf("pauses: settled %v, spawned %v, restored %v", settled, spawned, restored)
		if max(spawned, restored) <= factor*settled {
			break
		}
		if try == tries-1 {
			t.Errorf("a sandbox that loads stands still for more than %d times as long as a settled one", factor)
		}
	}
	// Once more without the checkpoint that loads everything.
	clone := spawn(t, shared, cp)
	got := clone.ask("sum")
	if got != sum {
		t.Errorf("the sum of the memory while it loads is %s, not %s", got, sum)
	}
}

// TestRestoreWhileASandboxStillLoads restores a spawned sandbox at once: what it
// replaces is saved whole, which it was not when the restore began.
func TestRestoreWhileASandboxStillLoads(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"load-rate": slowLoad})
	source := workload(t, s, count(100, 1024))
	sum := source.ask("sum")
	clone := spawn(t, s, source.checkpoint("source"))
	if s.Loading() == 0 {
		t.Fatal("the spawn is loaded already")
	}
	clone.sh("echo mine >mark")
	clone.restore(source.checkpoint("of another"))
	if got := clone.ask("sum"); got != sum {
		t.Errorf("the sum of the restored memory is %s, not %s", got, sum)
	}
	var saved string
	for _, cp := range asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", clone.id) {
		if strings.HasPrefix(cp.Name, "before-restore-") && cp.Status == client.CheckpointReady && !cp.Unverified {
			saved = cp.ID
		}
	}
	if saved == "" {
		t.Fatal("nothing was saved")
	}
	before := spawn(t, s, saved)
	if got, mark := before.ask("sum"), before.sh("cat mark"); got != sum || mark != "mine" {
		t.Errorf("what was saved has a memory whose sum is %s, not %s, and the mark %q", got, sum, mark)
	}
}

// dropped makes a checkpoint and deletes it.
func (b box) dropped() {
	b.t.Helper()
	oc(b.t, b.s, "checkpoint", "delete", b.id, b.checkpoint("dropped"))
}

// TestLoadGoesOnWithoutTheServer kills the server while a spawn loads slowly,
// and deletes the checkpoint that it loads from under the next one.
func TestLoadGoesOnWithoutTheServer(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"load-rate": "8"}) // a new server takes its time where page faults are dear
	b := create(t, s)
	b.heap(200, 13)
	sum := b.heapSum()
	b.count()
	cp := b.checkpoint("heap")
	clones := spawnMany(t, s, cp, 2)
	if s.Loading() == 0 {
		t.Fatal("the spawns are loaded already")
	}
	crash(t, s)
	if s.Loading() == 0 {
		t.Error("the pager went with the server")
	}
	must(t, s.Up(t.Context()))
	clones[0].countOn(5)
	object := checkpointObject(t, s, cp)
	oc(t, s, "checkpoint", "delete", b.id, cp)
	if s.Loading() == 0 {
		t.Error("the spawns are loaded already: this does not test a deletion while they load")
	}
	if got := clones[0].heapSum(); got != sum {
		t.Errorf("the heap of the first spawn is %s, not %s", got, sum)
	}
	await(t, "the spawns are loaded", func() bool { return s.Loading() == 0 })
	for i, x := range clones {
		x.countOn(5)
		x.ticks()
		if got := x.heapSum(); got != sum {
			t.Errorf("the heap of spawn %d is %s, not %s", i, got, sum)
		}
		next := x.checkpoint("after the load")
		x.restore(next)
		x.countOn(5)
	}
	await(t, "the deleted checkpoint's object is gone", func() bool {
		_, err := os.Stat(object)
		return errors.Is(err, fs.ErrNotExist)
	})
}
