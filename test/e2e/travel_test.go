// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// TestCheckpointTravelsToAnotherServer pipes a checkpoint of an older build from
// one server into another, which has neither that build nor the image; keeps it
// there in a bucket; and loses build and image once more.
func TestCheckpointTravelsToAnotherServer(t *testing.T) {
	t.Parallel()
	from, earlier := earlierServer(t, nil)
	b := create(t, from)
	b.count()
	b.heap(30, 51)
	sum := b.heapSum()
	cp := b.checkpoint("travels")
	before := b.counted()

	r := startRemote(t)
	to := r.use(nil)
	away := func() {
		t.Helper()
		uncache(t, to)
		for _, file := range append(images(t, to), keptBuild(t, to, earlier)) {
			must(t, os.RemoveAll(file))
		}
	}
	away()
	empty := r.stored()
	file := filepath.Join(t.TempDir(), "checkpoint")
	oc(t, from, "checkpoint", "export", cp, file)
	whole, err := os.ReadFile(file)
	must(t, err)
	for _, n := range []int{0, 100, len(whole) / 2, len(whole) - 1} {
		if out := invoke(t, to, bytes.NewReader(whole[:n]), "checkpoint", "import", "-"); out.Code == 0 {
			t.Errorf("%d of %d bytes were taken: %s", n, len(whole), out)
		}
	}
	if list := asJSON[[]client.Sandbox](t, to, "ls"); len(list) > 0 || r.stored() != empty || len(uploads(t, to)) > 0 {
		t.Errorf("truncated files left %+v, %d bytes in the store, and %v", list, r.stored()-empty, uploads(t, to))
	}

	came := pipe(t, from, to, cp)
	check := func() {
		t.Helper()
		x := spawn(t, to, came.ID)
		x.countOn(5)
		if n := common(x.ticks(), b.ticks()); n == 0 || n > before {
			t.Errorf("the logs have %d lines in common, the checkpoint was made before %d", n, before)
		}
		if got := x.heapSum(); got != sum {
			t.Errorf("the heap is %s, not %s", got, sum)
		}
		oc(t, to, "kill", x.id)
	}
	check()
	away()
	check()
	sound(t, to)
}

// uploads gives what a server has of files that are being imported.
func uploads(t *testing.T, s *harness.Server) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Data, "uploads", "*"))
	must(t, err)
	return files
}

// pipe exports a checkpoint from a server straight into another.
func pipe(t *testing.T, from, to *harness.Server, cp string) client.Checkpoint {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	export := from.Command(ctx, "checkpoint", "export", cp, "-")
	data, err := export.StdoutPipe()
	must(t, err)
	var errs bytes.Buffer
	export.Stderr = &errs
	must(t, export.Start())
	out := invoke(t, to, data, "checkpoint", "import", "-", "--json")
	if err := export.Wait(); err != nil || out.Code != 0 {
		t.Fatalf("export: %v\n%s\nimport: %s", err, &errs, out)
	}
	var came client.Checkpoint
	must(t, json.Unmarshal([]byte(out.Stdout), &came))
	if came.Status != client.CheckpointReady {
		t.Fatalf("what was imported is %+v", came)
	}
	return came
}
