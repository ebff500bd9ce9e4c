// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// firstFormat is the last commit that wrote checkpoints in the first format. Its
// engine helpers know no other.
const firstFormat = "313a5db"

// TestCheckpointsOfTheFirstFormat goes on from a server that wrote them, with its
// sandbox and its checkpoints. To the present engine it is the same as its own, by
// its stamp, or another, which alone can read its images.
func TestCheckpointsOfTheFirstFormat(t *testing.T) {
	t.Parallel()
	for name, stamp := range map[string]string{"its own stamp": "", "another stamp": "oc-engine-first"} {
		first := filepath.Join(t.TempDir(), "oc")
		must(t, harness.BuildCommit(t.Context(), t.TempDir(), firstFormat, first, stamp))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testFirstFormat(t, first)
		})
	}
}

// testFirstFormat is the test with the oc of that commit.
func testFirstFormat(t *testing.T, first string) {
	current, err := harness.Binary()
	must(t, err)
	s, err := harness.New("", harness.Settings{"load-rate": slowLoad})
	must(t, err)
	s.Use(first)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("from the server's log:\n%s", troubles(s))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, s.Up(t.Context()))
	oc(t, s, "template", "build", "small")
	b := create(t, s)
	b.count()
	b.heap(40, 7)
	sum := b.heapSum()
	cp := b.checkpoint("of the first format")
	dir := filepath.Join(s.Data, "checkpoints", cp)
	must(t, exists(dir))

	must(t, s.Down(t.Context()))
	s.Use(current)
	must(t, s.Up(t.Context()))
	old := keptBuild(t, s, first)
	awaitEngines(t, s, old, 1)
	goesOn := func(x box) {
		t.Helper()
		x.countOn(5)
		x.ticks()
		if got := x.heapSum(); got != sum {
			t.Errorf("the heap is %s, not %s", got, sum)
		}
	}
	spawns := func(cp string) {
		t.Helper()
		clone := spawn(t, s, cp)
		goesOn(clone)
		oc(t, s, "kill", clone.id)
	}
	usable := func(cp string) {
		t.Helper()
		oc(t, s, "checkpoint", "verify", cp)
		b.restore(cp)
		goesOn(b)
		spawns(cp)
	}
	goesOn(b)

	next := b.checkpoint("of its sandbox, by the new server") // captured by the old helper
	listed := asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id)
	for _, id := range []string{cp, next} {
		if !slices.ContainsFunc(listed, func(c client.Checkpoint) bool { return c.ID == id && c.Status == client.CheckpointReady }) {
			t.Errorf("%s is not in the list: %+v", id, listed)
		}
	}
	usable(next)
	usable(cp)

	file := filepath.Join(s.Root, "exported")
	oc(t, s, "checkpoint", "export", cp, file)
	spawns(asJSON[client.Checkpoint](t, s, "checkpoint", "import", file).ID)

	must(t, exists(dir))
	if c := asJSON[client.Checkpoint](t, s, "checkpoint", "convert", cp); c.AddedBytes <= 0 || c.Status != client.CheckpointReady {
		t.Errorf("converted: %+v", c)
	}
	if err := exists(dir); err == nil {
		t.Error("the directory of a converted checkpoint is there")
	}
	restart(t, s)
	usable(cp)
	oc(t, s, "store", "check")

	forks, err := api(t, s).ForkSandbox(t.Context(), b.id, client.SpawnRequest{})
	must(t, err)
	fork := adopt(t, s, forks.Sandboxes[0].ID)
	goesOn(fork)
	spawns(fork.checkpoint("of a fork"))
	left, err := filepath.Glob(filepath.Join(s.Data, "uploads", "*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left unpacked: %v", left)
	}
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}
