// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// TestListeningServerAnswersInEveryClone makes a checkpoint of a sandbox with a
// listening server, spawns from it, asks the server in the spawn and kills it,
// again and again.
func TestListeningServerAnswersInEveryClone(t *testing.T) {
	t.Parallel()
	const settled, slack = 5, 16
	s := ownServer(t, "", harness.Settings{"load-rate": slowLoad})
	source := create(t, s, "--memory", "256")
	source.push("listen.py")
	source.start("python3", "listen.py")
	await(t, "the server listens", func() bool { return source.exec("bash", "-c", askScript("0")).Code == 0 })

	server := running(s, "serve")[0]
	rounds, asked, start := 0, 1, time.Now()
	var files, slowest = 0, time.Duration(0)
	for rounds < count(50, 1000) {
		rounds++
		began := time.Now()
		round(t, source, rounds, &asked)
		slowest = max(slowest, time.Since(began))
		if rounds == settled {
			files = openFiles(t, server)
		}
	}
	t.Logf("%d rounds, %v each, the slowest %v", rounds, (time.Since(start) / time.Duration(rounds)).Round(time.Millisecond), slowest.Round(time.Millisecond))

	if now := openFiles(t, server); now > files+slack {
		t.Errorf("the server has %d files open, after %d rounds it had %d", now, settled, files)
	}
	await(t, "no helper is left but those that wait", func() bool {
		return len(running(s, "engine-helper")) == len(running(s, "engine-helper", "standby"))+len(running(s, "engine-helper", "staying"))
	})
	const pool = 4 // the default
	if n := len(engines(s)); n > 1+pool {
		t.Errorf("%d engines run for one sandbox", n)
	}
	var left []string
	await(t, "the deleted checkpoints' data are gone", func() bool {
		var err error
		left, err = filepath.Glob(filepath.Join(s.Data, "store", "packs", "*", "*"))
		return err == nil && len(left) == 0
	})
	if len(left) > 0 {
		t.Errorf("of the deleted checkpoints there is still %v", left)
	}
	if list := asJSON[[]client.Sandbox](t, s, "ls"); len(list) != 1 {
		t.Errorf("%d sandboxes are listed, not 1", len(list))
	}
}

// roundTime bounds a round: what takes longer is stuck.
const roundTime = 45 * time.Second

// round is one; asked counts what the source's server has been asked.
func round(t *testing.T, source box, n int, asked *int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), roundTime)
	defer cancel()
	c := api(t, source.s)
	cp, err := c.CreateCheckpoint(ctx, source.id, client.CreateCheckpointRequest{Name: "round"})
	if err != nil || cp.Status != client.CheckpointReady {
		t.Fatalf("round %d: the checkpoint is %s %s: %v", n, cp.Status, cp.ErrorMsg, err)
	}
	clone, err := c.SpawnCheckpoint(ctx, cp.ID, client.SpawnRequest{})
	if err != nil {
		t.Fatalf("round %d: spawning: %v", n, err)
	}
	*asked++
	word := fmt.Sprint("round-", n)
	for _, id := range []string{clone.ID, source.id} {
		want := fmt.Sprintf("%s %d\n", word, *asked)
		res, err := c.RunExec(ctx, id, client.ExecRequest{Cmd: "bash", Args: []string{"-c", askScript(word)}})
		if err != nil || res.Stdout != want {
			t.Fatalf("round %d: the server in %s answers %q, not %q: %v %s", n, id, res.Stdout, want, err, res.Stderr)
		}
	}
	if err := c.KillSandbox(ctx, clone.ID); err != nil {
		t.Fatalf("round %d: killing: %v", n, err)
	}
	if err := c.DeleteCheckpoint(ctx, source.id, cp.ID); err != nil {
		t.Fatalf("round %d: deleting: %v", n, err)
	}
}

// askScript asks the server for an answer to a word. A refused connection is
// tried again for a second, nothing else is.
func askScript(word string) string {
	return strings.ReplaceAll(`for i in {1..20}; do { exec 3<>/dev/tcp/127.0.0.1/8077; } 2>/dev/null && break; sleep 0.05; done
		echo WORD >&3 && read -r -t 10 answer <&3 && echo "$answer"`, "WORD", word)
}
