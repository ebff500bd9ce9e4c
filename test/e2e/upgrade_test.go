// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// TestUpgradedServerWorksWithSandboxesOfTheOldBuild starts sandboxes under one
// build of oc and goes on with another, whose engine cannot read the images of
// the first one's.
func TestUpgradedServerWorksWithSandboxesOfTheOldBuild(t *testing.T) {
	t.Parallel()
	current, err := harness.Binary()
	must(t, err)
	s, earlier := earlierServer(t, harness.Settings{"load-rate": slowLoad, "pool": 2})
	b := create(t, s)
	b.count()
	b.heap(50, 5)
	sum := b.heapSum()
	big := create(t, s)
	big.heap(200, 6)
	bigSum, bigCP := big.heapSum(), big.checkpoint("large, of the old build")
	oc(t, s, "kill", big.id)
	cp := b.checkpoint("of the old build")
	other := create(t, s)
	loading := spawn(t, s, cp) // its pager is of the old build as well

	must(t, s.Down(t.Context()))
	s.Use(current)
	must(t, s.Up(t.Context()))
	old, now := keptBuild(t, s, earlier), servingBuild(t, s)
	awaitEngines(t, s, old, 3)

	loadedByAPair(t, s, bigCP, bigSum)

	b.countOn(5)
	b.ticks()
	if got := loading.heapSum(); got != sum {
		t.Errorf("the heap of the spawn that was loading is %s, not %s", got, sum)
	}
	next := b.checkpoint("by the new server")
	b.restore(cp)
	b.countOn(5)
	b.ticks()
	// More than the pool holds: none may come from a pool of the new build.
	for _, from := range []string{cp, next, cp, next} {
		clone := spawn(t, s, from)
		clone.countOn(5)
		clone.ticks()
		if got := clone.heapSum(); got != sum {
			t.Errorf("the heap of a spawn is %s, not %s", got, sum)
		}
		again := clone.checkpoint("of a spawn")
		oc(t, s, "kill", clone.id)
		oc(t, s, "checkpoint", "delete", clone.id, again)
	}
	awaitEngines(t, s, old, 3)

	fresh := create(t, s)
	fresh.count()
	if n := enginesOf(s, now); n == 0 {
		t.Error("a new sandbox does not run the new build")
	}
	fromFresh := fresh.checkpoint("of the new build")
	other.restore(fromFresh) // across the builds
	other.countOn(5)
	awaitEngines(t, s, old, 2)

	// The machine has lost the old build: the store has it.
	must(t, os.Rename(old, old+".away"))
	again := spawn(t, s, cp)
	again.countOn(5)
	oc(t, s, "kill", again.id)
	fresh.countOn(5)
	fresh.ticks()
	b.countOn(5)
	must(t, os.RemoveAll(old+".away"))

	for _, x := range []box{b, loading} {
		oc(t, s, "kill", x.id)
	}
	awaitEngines(t, s, old, 0)
	restart(t, s)
	last := spawn(t, s, cp)
	last.countOn(5)
	last.ticks()
	if sb := last.get(); sb.Status != client.StatusRunning {
		t.Errorf("it is %s", sb.Status)
	}
}

// earlierOC is an oc of another build, made once.
var earlierOC struct {
	once sync.Once
	path string
	err  error
}

// earlierServer brings up a server of an earlier build, and gives its oc too.
func earlierServer(t *testing.T, settings harness.Settings) (s *harness.Server, binary string) {
	t.Helper()
	earlierOC.once.Do(func() {
		earlierOC.path = filepath.Join(shared.Root, "earlier-oc")
		earlierOC.err = harness.BuildOC(t.Context(), earlierOC.path, "oc-engine-earlier")
	})
	must(t, earlierOC.err)
	s, err := harness.New("", settings)
	must(t, err)
	s.Use(earlierOC.path)
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
	return s, earlierOC.path
}

// loadedByAPair spawns a checkpoint of another build: a pager of the server's
// build and a helper of the other one load it, which a dead server does not
// end, and a dead pager does.
func loadedByAPair(t *testing.T, s *harness.Server, cp, sum string) {
	t.Helper()
	await(t, "nothing loads", func() bool { return s.Loading() == 0 })
	pagers := func() []int { return running(s, "engine-helper", "pager") }
	x := spawn(t, s, cp)
	pair := pagers()
	if len(pair) != 1 || s.Loading() != 1 {
		t.Fatalf("pagers %v and %d helpers of a spawn", pair, s.Loading())
	}
	crash(t, s)
	if now := pagers(); len(now) != 1 || now[0] != pair[0] || s.Loading() != 1 {
		t.Errorf("pagers %v and %d helpers without the server", now, s.Loading())
	}
	must(t, s.Up(t.Context()))
	if got := x.heapSum(); got != sum {
		t.Errorf("the heap of the spawn is %s, not %s", got, sum)
	}
	await(t, "the pair is gone", func() bool { return s.Loading() == 0 && len(pagers()) == 0 })
	if got := x.heapSum(); got != sum {
		t.Errorf("the heap of the loaded spawn is %s, not %s", got, sum)
	}
	oc(t, s, "kill", x.id)

	x = spawn(t, s, cp)
	for _, pid := range pagers() {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	await(t, "the spawn ends in an error", func() bool { return x.get().Status == client.StatusError })
	if reason := x.get().Reason; !strings.Contains(reason, "the pager is gone") {
		t.Errorf("the reason does not name the pager: %s", reason)
	}
	await(t, "the helper is gone", func() bool { return s.Loading() == 0 && len(pagers()) == 0 })
	oc(t, s, "kill", x.id)
}

// awaitEngines waits until so many engine processes run from a kept build.
func awaitEngines(t *testing.T, s *harness.Server, build string, n int) {
	t.Helper()
	await(t, fmt.Sprintf("%d engines of build %.12s run", n, filepath.Base(build)), func() bool { return enginesOf(s, build) == n })
}
