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

// lostStore bounds how long a sandbox may wait for a store that does not answer
// before it ends in an error.
const lostStore = 2 * time.Minute

// fetch is what it took to bring up a sandbox.
type fetch struct {
	bytes int64
	time  time.Duration
}

// fetched brings up a spawn with an empty cache, and tells what its first command
// took, and all of it.
func (r *remote) fetched(s *harness.Server, cp string) (x box, first, all fetch) {
	r.t.Helper()
	uncache(r.t, s)
	from, begin := r.received(), time.Now()
	now := func() fetch { return fetch{r.received() - from, time.Since(begin)} }
	x = spawn(r.t, s, cp)
	x.sh("true")
	first = now()
	awaitFor(r.t, commandTime, "it is loaded", func() bool { return s.Loading() == 0 })
	return x, first, now()
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

	for _, what := range []string{"the first time", "with the first reads known"} {
		x, first, all := r.fetched(s, cp)
		t.Logf("%s: first command after %v and %d KB, everything after %v and %d KB", what,
			first.time.Round(time.Millisecond), first.bytes>>10, all.time.Round(time.Millisecond), all.bytes>>10)
		if all.bytes < int64(mb)<<20 {
			t.Errorf("%s: only %d bytes were fetched", what, all.bytes)
		}
		if part := first.bytes * 100 / all.bytes; part > int64(count(40, 7)) {
			t.Errorf("%s: the first command took %d %% of the bytes", what, part)
		}
		x.countOn(5)
		if got := x.heapSum(); got != sum {
			t.Errorf("%s: the heap is %s, not %s", what, got, sum)
		}
		oc(t, s, "kill", x.id)
	}

	uncache(t, s)
	x := spawn(t, s, cp)
	crash(t, s)
	if s.Loading() != 1 {
		t.Error("the pager went with the server, or had loaded everything")
	}
	must(t, s.Up(t.Context()))
	if got := x.heapSum(); got != sum {
		t.Errorf("the heap is %s, not %s", got, sum)
	}
	x.countOn(5)
	x.ticks()
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
