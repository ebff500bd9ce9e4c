// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
)

// drift is how far a sandbox's wall clock is from the host's, in seconds.
func (b box) drift() float64 {
	b.t.Helper()
	before := time.Now()
	inside, err := strconv.ParseFloat(b.sh("echo ${EPOCHREALTIME}"), 64)
	must(b.t, err)
	after := time.Now()
	// Between the two; how far outside of them is the drift.
	early := float64(before.UnixMicro())/1e6 - inside
	late := inside - float64(after.UnixMicro())/1e6
	return math.Max(early, late)
}

// TestClocksAreRightAfterPauseRestoreAndSpawn looks at the wall clock at once
// after each; the counter watches the monotonic one all the time.
func TestClocksAreRightAfterPauseRestoreAndSpawn(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	b.start("bash", "-c", "sleep 2; echo woke >woke")
	cp := b.checkpoint("clocks")
	for name, x := range map[string]box{"source": b} {
		if d := x.drift(); d > 1 {
			t.Errorf("%s: the clock is %f s off", name, d)
		}
	}
	<-time.After(2 * time.Second) // what a restored clock would lag behind
	clone := spawn(t, shared, cp)
	if d := clone.drift(); d > 1 {
		t.Errorf("spawn: the clock is %f s off", d)
	}
	b.restore(cp)
	if d := b.drift(); d > 1 {
		t.Errorf("restored: the clock is %f s off", d)
	}
	for _, x := range []box{b, clone} {
		x.countOn(5)
		x.ticks()
		await(t, "a sleep ends in every copy", func() bool { return x.exec("test", "-e", "woke").Code == 0 })
	}
}

// TestForksShareNoIdentity compares what two spawns, their source and a restored
// one read first thing.
func TestForksShareNoIdentity(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	cp := b.checkpoint("twins")
	boxes := append(spawnMany(t, shared, cp, 2), b, create(t, shared))
	boxes[3].restore(cp)
	seen := map[string]string{}
	for _, x := range boxes {
		for what, command := range map[string]string{
			"random bytes":  "head -c 32 /dev/urandom | od -An -tx1",
			"random device": "head -c 16 /dev/random | od -An -tx1",
			"uuid":          "cat /proc/sys/kernel/random/uuid",
			"python uuid":   "python3 -c 'import uuid, secrets; print(uuid.uuid4(), secrets.token_hex())'",
			"host name":     "cat /proc/sys/kernel/hostname",
			"hostname file": "cat /etc/hostname",
			"machine id":    "cat /etc/machine-id",
		} {
			got := strings.TrimSpace(x.sh(command))
			if other := seen[what+got]; other != "" || got == "" {
				t.Errorf("%s and %s have the same %s: %q", x.id, other, what, got)
			}
			seen[what+got] = x.id
		}
		if got := x.sh("hostname"); got != x.id {
			t.Errorf("%s calls itself %s", x.id, got)
		}
		if got := x.sh("getent hosts $(hostname) | awk '{print $2}'"); got != x.id {
			t.Errorf("%s resolves its own name to %q", x.id, got)
		}
	}
}
