// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// hogTime is for how long a sandbox is worked in that runs out of something, at
// most: what is refused, or killed, is at its end before.
const hogTime = 6 * time.Second

// TestSickSandboxIsRestored puts a sandbox back that has run out of something, or
// whose engine was killed. It is as it was; what it had come to is kept, where
// there is anything of it.
func TestSickSandboxIsRestored(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"pool": 0})
	for name, script := range map[string]string{
		"fork bomb":   `bomb() { bomb | bomb & }; bomb; sleep 1000`,
		"full disk":   `cat /dev/zero >full`,
		"full memory": `cat /dev/zero >/dev/shm/full`,
		"memory hog": `python3 -c 'x = []
while True: x.append(bytearray(b"x" * (4 << 20)))'`,
		"dead engine": "",
	} {
		b := create(t, s, "--memory", "256", "--disk", "100")
		b.sh("echo well >note")
		b.count()
		cp := b.checkpoint("well")
		if script == "" {
			killEngine(t, b)
		} else {
			ctx, cancel := context.WithTimeout(t.Context(), hogTime)
			// Whatever becomes of it: its time may be over, or its sandbox.
			_, _ = s.Run(ctx, nil, "exec", b.id, "--", "bash", "-c", "echo sick >note; "+script)
			cancel()
		}
		alive := b.get().Status == client.StatusRunning
		res, err := api(t, s).RestoreCheckpoint(t.Context(), b.id, cp, client.RestoreRequest{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Logf("%s: it was alive: %v; saved %q, %s", name, alive, res.SavedCheckpointID, res.Note)
		nothing := strings.Contains(res.Note, "nothing to save")
		if alive && name == "fork bomb" && nothing {
			alive = false // the engine ended of it meanwhile
		}
		if alive != (res.SavedCheckpointID != "") || alive == nothing {
			t.Errorf("%s: it was alive: %v; saved is %q (%s)", name, alive, res.SavedCheckpointID, res.Note)
		}
		b.countOn(5)
		if note := b.sh("cat note; df -m / | awk 'NR == 2 {print ($4 > 50)}'; ls /dev/shm | wc -l"); note != "well\n1\n0" {
			t.Errorf("%s: restored, it has %q", name, note)
		}
		b.checkpoint("well again")
		await(t, "one engine is left", func() bool { return len(engines(s)) == 1 })
		oc(t, s, "kill", b.id)
	}
}

// killEngine kills the engine of a server's one sandbox, and waits until that is
// known.
func killEngine(t *testing.T, b box) {
	t.Helper()
	for _, pid := range engines(b.s) {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	await(t, "the engine's end is known", func() bool { return b.get().Status == client.StatusError })
}
