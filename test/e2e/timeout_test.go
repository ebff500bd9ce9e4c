// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"regexp"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
)

// TestTimeoutRollsAndKeepsTheStateWhenItExpires uses a sandbox for longer than
// its timeout, leaves it alone, and goes on from what was kept.
func TestTimeoutRollsAndKeepsTheStateWhenItExpires(t *testing.T) {
	t.Parallel()
	const seconds = 4
	b := create(t, shared, "--timeout", "4")
	b.count()
	for began := time.Now(); time.Since(began) < (seconds+2)*time.Second; {
		b.countOn(1) // each look is a use
	}
	sb := b.get()
	if sb.Status != client.StatusRunning {
		t.Fatalf("while it is used it is %s (%s)", sb.Status, sb.Reason)
	}
	if left := time.Until(sb.EndAt); left > seconds*time.Second || left < 0 {
		t.Errorf("it ends in %v; its timeout is %d s", left, seconds)
	}
	counted := b.counted()
	last := time.Now()
	await(t, "it expires", func() bool { return b.get().Status == client.StatusStopped })
	if early := seconds*time.Second - time.Since(last); early > time.Second {
		t.Errorf("it expired %v early", early)
	}
	if reason := b.get().Reason; reason != "expired" {
		t.Errorf("the reason is %q", reason)
	}
	cps := asJSON[[]client.Checkpoint](t, shared, "checkpoint", "list", b.id)
	if len(cps) != 1 || !regexp.MustCompile(`^expired-[0-9a-f]{8}$`).MatchString(cps[0].Name) || cps[0].Status != client.CheckpointReady {
		t.Fatalf("its checkpoints: %+v", cps)
	}
	refused(t, shared, 3, []string{b.id, "stopped"}, "exec", b.id, "--", "true")
	refused(t, shared, 3, []string{b.id, "stopped", cps[0].ID}, "checkpoint", "restore", b.id, cps[0].ID)

	clone := spawn(t, shared, cps[0].ID)
	clone.countOn(5)
	clone.ticks()
	if now := clone.counted(); now < counted {
		t.Errorf("the spawn went back from %d to %d", counted, now)
	}
}

// TestTimeoutRollsWithFilesAndTerminals uses sandboxes in nothing but one way for
// longer than their timeout, and then leaves them alone.
func TestTimeoutRollsWithFilesAndTerminals(t *testing.T) {
	t.Parallel()
	const timeout = 3 * time.Second
	c := api(t, shared)
	for what, use := range map[string]func(ctx context.Context, id string) error{
		"files": func(ctx context.Context, id string) error {
			_, err := c.ListFiles(ctx, id, "/")
			return err
		},
		"terminals": func(ctx context.Context, id string) error {
			pty, err := c.OpenPTY(ctx, id, client.PTYRequest{})
			if err != nil {
				return err
			}
			return c.ClosePTY(ctx, id, pty.SessionID)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := create(t, shared, "--timeout", "3")
			began := time.Now()
			await(t, "it is used for longer than its timeout", func() bool {
				must(t, use(t.Context(), b.id))
				return time.Since(began) > timeout+2*time.Second
			})
			last := time.Now()
			if sb := b.get(); sb.Status != client.StatusRunning || time.Until(sb.EndAt) > timeout {
				t.Errorf("while it is used it is %s (%s) and ends %v", sb.Status, sb.Reason, sb.EndAt)
			}
			await(t, "it expires", func() bool { return b.get().Reason == "expired" })
			if early := timeout - time.Since(last); early > time.Second {
				t.Errorf("it expired %v early", early)
			}
		})
	}
}

// TestSpawnHonoursItsTimeout makes one that expires and one that never does, and
// changes a timeout.
func TestSpawnHonoursItsTimeout(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	cp := b.checkpoint("short")
	clone := asJSON[client.Sandbox](t, shared, "checkpoint", "spawn", cp, "--timeout", "2", "--name", "brief")
	short := adopt(t, shared, clone.ID)
	if clone.Timeout != 2 || clone.Name != "brief" {
		t.Errorf("spawned: %+v", clone)
	}
	page := asJSON[client.Sandbox](t, shared, "checkpoint", "spawn", cp)
	if adopt(t, shared, page.ID); page.Timeout != 300 {
		t.Errorf("the default timeout is %d", page.Timeout)
	}
	never := spawn(t, shared, cp)
	if sb := never.get(); sb.Timeout != 0 || sb.EndAt.Year() > 1 {
		t.Errorf("without a timeout it ends %v", sb.EndAt)
	}
	oc(t, shared, "set-timeout", never.id, "2")
	await(t, "both expire", func() bool {
		return short.get().Reason == "expired" && never.get().Reason == "expired"
	})
	if sb := b.get(); sb.Status != client.StatusRunning {
		t.Errorf("the source, which has no timeout, is %s (%s)", sb.Status, sb.Reason)
	}
}
