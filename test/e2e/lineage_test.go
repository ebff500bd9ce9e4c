// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"regexp"
	"strings"
	"testing"

	"github.com/opencomputer/oc/client"
)

// parents gives what each sandbox and checkpoint of a sandbox's family descends
// from.
func parents(t *testing.T, b box) map[string]string {
	t.Helper()
	of := map[string]string{}
	for _, n := range asJSON[[]client.TreeNode](t, b.s, "checkpoint", "tree", b.id) {
		of[n.ID] = n.ParentID
	}
	return of
}

// TestForkIsACheckpointAndItsSandboxes forks a sandbox with a counter, reads what
// is printed, and finds all of it in the tree.
func TestForkIsACheckpointAndItsSandboxes(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	res := asJSON[client.ForkResult](t, shared, "fork", b.id, "-n", "2", "--name", "kid", "--timeout", "0")
	if len(res.Sandboxes) != 2 || res.Checkpoint.SandboxID != b.id || !res.Checkpoint.Automatic {
		t.Fatalf("oc fork -n 2: %+v", res)
	}
	of := parents(t, b)
	if of[b.id] != "" || of[res.Checkpoint.ID] != b.id {
		t.Errorf("%s and its checkpoint %s: %v", b.id, res.Checkpoint.ID, of)
	}
	for i, sb := range res.Sandboxes {
		kid := adopt(t, shared, sb.ID)
		if want := []string{"kid-1", "kid-2"}[i]; sb.Name != want || sb.Status != client.StatusRunning || of[sb.ID] != res.Checkpoint.ID {
			t.Errorf("%s: %+v, of %s", want, sb, of[sb.ID])
		}
		kid.countOn(5)
		if n := common(b.ticks(), kid.ticks()); n == 0 {
			t.Errorf("%s does not go on from where the source was", sb.ID)
		}
	}
	b.countOn(5)
	await(t, "the checkpoint is stored", func() bool {
		cp, err := api(t, shared).GetCheckpoint(t.Context(), res.Checkpoint.ID)
		must(t, err)
		return cp.Status == client.CheckpointReady
	})
	spawn(t, shared, res.Checkpoint.ID).countOn(5)

	said := oc(t, shared, "fork", b.id, "--timeout", "0")
	ids := regexp.MustCompile(`^Checkpoint created: (cp-[0-9a-f]{8}) \(status: (?:processing|ready)\)\nCreated sandbox (sb-[0-9a-f]{8}) from checkpoint \(status: running\)$`).FindStringSubmatch(said)
	if ids == nil {
		t.Fatalf("oc fork:\n%s", said)
	}
	adopt(t, shared, ids[2]).countOn(5)

	drawn := oc(t, shared, "cp", "tree", b.id)
	depth := func(id string) int {
		for line := range strings.Lines(drawn) {
			if before, _, ok := strings.Cut(line, id); ok {
				return len([]rune(before))
			}
		}
		t.Errorf("no %s in the tree:\n%s", id, drawn)
		return 0
	}
	for child, parent := range parents(t, b) {
		if parent != "" && depth(child) <= depth(parent) {
			t.Errorf("%s is not below %s:\n%s", child, parent, drawn)
		}
	}
	if !strings.HasPrefix(drawn, b.id) || !strings.Contains(drawn, "kid-2") {
		t.Errorf("oc cp tree %s:\n%s", b.id, drawn)
	}
}

// TestRestoreOfAnothersCheckpoint puts a sandbox of one template to a checkpoint of
// a sandbox of another one, and back.
func TestRestoreOfAnothersCheckpoint(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	oc(t, s, "template", "import", "tiny", hostTarball(t, "bash", "cat"))
	source := create(t, s)
	source.count()
	cp := source.checkpoint("of the source")
	target := create(t, s, "--template", "tiny", "--timeout", "77", "--name", "target")
	target.sh("echo mine >note")
	own := target.checkpoint("of the target")
	is := func(template string, python bool) {
		t.Helper()
		sb := target.get()
		if sb.TemplateID != template || sb.Timeout != 77 || sb.Name != "target" || sb.Status != client.StatusRunning {
			t.Errorf("on %s it is %+v", template, sb)
		}
		if out := target.exec("python3", "-c", ""); (out.Code == 0) != python {
			t.Errorf("on %s: %s", template, out)
		}
	}
	is("tiny", false)

	target.restore(cp)
	is("small", true)
	target.countOn(10)
	if n := common(source.ticks(), target.ticks()); n == 0 {
		t.Error("it does not go on from where the source was")
	}
	next := target.checkpoint("next")
	of, saved := parents(t, target), ""
	for _, c := range asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", target.id) {
		if c.Automatic {
			saved = c.ID
		}
	}
	if of[next] != cp || of[cp] != source.id || of[own] != target.id || saved == "" || of[saved] != own {
		t.Errorf("source %s: %s; target %s: %s, then %q and %s; they descend from %v", source.id, cp, target.id, own, saved, next, of)
	}

	target.restore(saved)
	is("tiny", false)
	if got := target.sh("cat note"); got != "mine" {
		t.Errorf("the note says %q", got)
	}
	source.countOn(5)
}
