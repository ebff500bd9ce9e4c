// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/test/harness"
)

// far is the way to a store in another town.
var far = buckettest.Link{Delay: 20 * time.Millisecond, Rate: 50 << 20}

// farTime bounds how long loading from there may take.
const farTime = 10 * time.Minute

// lostStore bounds how long a sandbox may wait for a store that does not answer
// before it ends in an error.
const lostStore = 2 * time.Minute

// spawn spawns with an empty cache, runs a first command, and gives a function that
// tells how much came over the link, and in what time.
func (r *remote) spawn(s *harness.Server, cp string) (x box, took func() (int64, time.Duration)) {
	r.t.Helper()
	uncache(r.t, s)
	from, begin := r.received(), time.Now()
	x = spawn(r.t, s, cp)
	x.sh("true")
	return x, func() (int64, time.Duration) { return r.received() - from, time.Since(begin) }
}

// farSum is heapSum of a sandbox that has to fetch its heap first.
func (b box) farSum() string {
	b.t.Helper()
	b.sh("rm -f heap.sum; kill -USR1 $(cat heap.pid)")
	awaitFor(b.t, farTime, "the heap is read", func() bool { return b.exec("test", "-s", "heap.sum").Code == 0 })
	return b.sh("cat heap.sum")
}

// TestSpawnFromAFarStore loads a sandbox from a store behind a slow link: it
// answers long before all is there, and goes on loading without the server.
func TestSpawnFromAFarStore(t *testing.T) {
	t.Parallel()
	r := startRemote(t)
	s := r.use(nil)
	mb := count(128, 1024)
	b := create(t, s, "--memory", strconv.Itoa(mb+512))
	b.count()
	b.heap(mb, 41)
	sum := b.heapSum()
	cp := b.checkpoint("large")
	oc(t, s, "kill", b.id)
	r.link.SetLink(far)

	x, took := r.spawn(s, cp)
	first, firstTime := took()
	awaitFor(t, farTime, "it is loaded", func() bool { return s.Loading() == 0 })
	all, allTime := took()
	x.countOn(5)
	if got := x.heapSum(); got != sum {
		t.Errorf("the heap is %s, not %s", got, sum)
	}
	oc(t, s, "kill", x.id)

	x, took = r.spawn(s, cp) // what is read first is known now
	again, againTime := took()
	crash(t, s)
	if s.Loading() != 1 {
		t.Error("the pager went with the server, or had loaded everything")
	}
	must(t, s.Up(t.Context()))
	if got := x.farSum(); got != sum {
		t.Errorf("the heap is %s, not %s", got, sum)
	}
	x.countOn(5)
	x.ticks()

	t.Logf("everything: %d KB in %v; the first command: %d KB in %v, the next time %d KB in %v",
		all>>10, allTime.Round(time.Millisecond), first>>10, firstTime.Round(time.Millisecond), again>>10, againTime.Round(time.Millisecond))
	if all < int64(mb)<<20 {
		t.Errorf("only %d bytes were fetched", all)
	}
	if part := max(first, again) * 100 / all; part > int64(count(40, 7)) {
		t.Errorf("the first command took %d %% of the bytes", part)
	}
}

// TestStoreIsLostWhileASandboxLoads takes the link away for good.
func TestStoreIsLostWhileASandboxLoads(t *testing.T) {
	t.Parallel()
	r := startRemote(t)
	s := r.use(nil)
	b := create(t, s)
	b.heap(64, 42)
	cp := b.checkpoint("large")
	r.link.SetLink(buckettest.Link{Delay: far.Delay, Rate: 8 << 20})
	uncache(t, s)
	x := spawn(t, s, cp)
	x.sh("true")
	r.link.SetLink(buckettest.Link{Down: true})
	begin := time.Now()
	if s.Loading() == 0 {
		t.Fatal("it is loaded already")
	}
	awaitFor(t, lostStore, "the sandbox ends in an error", func() bool { return x.get().Status == client.StatusError })
	t.Logf("in state error after %v", time.Since(begin).Round(time.Second))
	if reason := x.get().Reason; !strings.Contains(reason, cp) || !strings.Contains(reason, "S3 bucket") {
		t.Errorf("the reason does not say what was lost: %s", reason)
	}
	refused(t, s, 3, []string{cp}, "exec", x.id, "--", "true")
	b.answers() // which was not loading
	r.link.SetLink(buckettest.Link{})
	spawn(t, s, cp).answers()
}
