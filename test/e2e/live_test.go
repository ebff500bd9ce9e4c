// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"
)

// maxPause is how long a running process may be held up by a checkpoint of its
// sandbox, on a machine that is busy with other tests.
const maxPause = 3 * time.Second

// TestProcessCarriesOnInSourceRestoreAndSpawns is the first promise: all of them
// go on from the number of the checkpoint's instant.
func TestProcessCarriesOnInSourceRestoreAndSpawns(t *testing.T) {
	t.Parallel()
	source := create(t, shared)
	source.count()
	before := source.counted()
	cp := source.checkpoint("instant")
	after := source.counted()
	source.countOn(20)
	went := source.ticks()
	if gap := longestGap(went, before); gap > maxPause {
		t.Errorf("the source stood still for %v", gap)
	}

	clones := spawnMany(t, shared, cp, 2)
	source.restore(cp)
	logs := map[string][]tick{"source": went}
	for i, b := range append(clones, source) {
		b.countOn(20)
		logs[[]string{"first spawn", "second spawn", "restored"}[i]] = b.ticks()
	}
	instant := common(logs["first spawn"], logs["second spawn"])
	for a, x := range logs {
		for b, y := range logs {
			if n := common(x, y); a != b && n != instant {
				t.Errorf("%s and %s part after %d, not %d", a, b, n, instant)
			}
		}
	}
	// The last number may have been on its way into the file.
	if instant < before-1 || instant > after+1 {
		t.Errorf("the instant is %d, but the checkpoint was made between %d and %d", instant, before, after)
	}
}

// TestLargeHeapIsTheSameEverywhere sums up 200 MB in a restored and a spawned
// sandbox while these still load.
func TestLargeHeapIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	source := create(t, shared)
	source.heap(200, 7)
	want := source.heapSum()
	cp := source.checkpoint("heap")
	clone := spawn(t, shared, cp)
	if shared.Loading() == 0 {
		t.Error("the spawn is loaded already: this does not test reads before the end of the load")
	}
	if got := clone.heapSum(); got != want {
		t.Errorf("the spawn's heap is %s, not %s", got, want)
	}
	source.restore(cp)
	if got := source.heapSum(); got != want {
		t.Errorf("the restored heap is %s, not %s", got, want)
	}
}

// heap starts a process that holds so many MB of known contents.
func (b box) heap(mb, seed int) {
	b.t.Helper()
	b.push("heap.py")
	b.sh(fmt.Sprintf("echo %d >heap.seed", seed))
	b.start("env", fmt.Sprintf("HEAP_MB=%d", mb), "python3", "heap.py")
	await(b.t, "the heap is filled", func() bool { return b.exec("test", "-s", "heap.pid").Code == 0 })
}

// heapSum asks that process for the hash of its heap.
func (b box) heapSum() string {
	b.t.Helper()
	return b.sh(`rm -f heap.sum; kill -USR1 $(cat heap.pid); until [ -s heap.sum ]; do sleep 0.1; done; cat heap.sum`)
}

// TestWhatCameAfterTheCheckpointVanishes compares the whole sandbox, files and
// processes, before the damage and after the restore.
func TestWhatCameAfterTheCheckpointVanishes(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.start("sleep", "1001")
	b.start("sleep", "1002")
	b.root(`mkdir -p /srv/a/b /tmp/t && echo one >/srv/a/b/file && ln -s file /srv/a/b/link && ln /srv/a/b/file /srv/a/b/hard
		chmod 600 /srv/a/b/file && chown sandbox /srv/a && mkfifo /tmp/t/pipe && echo run >/run/state && echo shm >/dev/shm/m
		echo changed >>/etc/hosts; rm /etc/debian_version; head -c 300000 /dev/urandom >/srv/big`)
	want := b.everything()
	cp := b.checkpoint("whole")
	b.root(`pkill -f '[s]leep 1001'; rm -rf /srv/a /tmp/t /run/state /dev/shm/m /srv/big; rm /etc/hosts /bin/date
		echo new >/srv/new; mkdir /home/sandbox/new; echo back >/etc/debian_version`)
	b.start("sleep", "1003")
	if b.everything() == want {
		t.Fatal("the damage cannot be seen")
	}
	b.restore(cp)
	if got := b.everything(); got != want {
		t.Errorf("the sandbox is not as it was:\n%s", difference(want, got))
	}
	if clone := spawn(t, shared, cp).everything(); clone != want {
		t.Errorf("the spawn is not as the source was:\n%s", difference(want, clone))
	}
}

// everything lists a sandbox's processes, and its files with their contents;
// but not what a restore has to change.
func (b box) everything() string {
	b.t.Helper()
	return b.root(`ps -eo pid,args | grep '[s]leep 100'
		find /etc /home /root /run /srv /tmp /usr/bin /dev/shm /var -xdev \
			! -path '/run/oc*' ! -path /etc/hostname ! -path /etc/machine-id ! -path /var/lib/dbus/machine-id ! -path /etc/hosts ! -path /run ! -path /etc ! -path /tmp \
			-printf '%p %y %m %u %g %l %n ' -a \( -type d -printf '\n' -o -printf '%s %T@\n' \) | sort
		grep -c changed /etc/hosts
		find /srv /tmp /run/state /dev/shm -type f | sort | xargs sha256sum 2>/dev/null`)
}

// difference shows lines that only one of two texts has.
func difference(want, got string) string {
	var out []string
	in := func(text string) map[string]bool {
		m := map[string]bool{}
		for l := range strings.Lines(text) {
			m[strings.TrimSpace(l)] = true
		}
		return m
	}
	w, g := in(want), in(got)
	for l := range w {
		if !g[l] {
			out = append(out, "- "+l)
		}
	}
	for l := range g {
		if !w[l] {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out[:min(len(out), 20)], "\n")
}

// TestLoopbackConnectionSurvives passes numbers over one TCP connection between
// two processes.
func TestLoopbackConnectionSurvives(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.push("echo.py")
	b.start("python3", "echo.py")
	b.countOn(10)
	cp := b.checkpoint("connected")
	clone := spawn(t, shared, cp)
	b.restore(cp)
	for _, x := range []box{b, clone} {
		x.countOn(20)
		x.ticks() // one process, no number lost: it ends with its connection
	}
}

// TestTenGenerations makes a checkpoint of a spawn of a checkpoint, and so on.
func TestTenGenerations(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	b.sh("head -c 1000000 /dev/urandom >blob")
	want := b.sh("sha256sum <blob")
	for i := range count(10, 50) {
		cp := b.checkpoint("generation")
		next := spawn(t, shared, cp)
		oc(t, shared, "kill", b.id)
		b = next
		b.sh(fmt.Sprintf("echo %d >>generations", i+1))
		b.countOn(3)
	}
	b.ticks()
	if got := b.sh("sha256sum <blob"); got != want {
		t.Errorf("the file is %s, not %s", got, want)
	}
	var lines strings.Builder
	for i := range count(10, 50) {
		fmt.Fprintf(&lines, "%d\n", i+1)
	}
	if got, want := sha256.Sum256([]byte(b.sh("cat generations")+"\n")), sha256.Sum256([]byte(lines.String())); got != want {
		t.Error("a generation's line is missing")
	}
}
