// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// machineMB gives a field of /proc/meminfo in MB.
func machineMB(t *testing.T, field string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		var kb int
		if _, err := fmt.Sscanf(line, field+": %d kB", &kb); err == nil {
			return kb >> 10
		}
	}
	t.Fatalf("/proc/meminfo has no %s", field)
	return 0
}

// shortOfMemory checks that an error is the refusal of what does not fit: now
// (503) or ever (429), with the numbers and what to do.
func shortOfMemory(t *testing.T, err error, status int) {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Status != status || e.Hint == "" ||
		len(regexp.MustCompile(`\d+ MB`).FindAllString(e.Message, -1)) < 3 || !strings.Contains(e.Message, "memory") {
		t.Errorf("not a refusal with the numbers: %v (%+v)", err, e)
	}
}

// loadTime bounds the loading of as many gigabytes as the machine has.
const loadTime = 5 * time.Minute

// TestMemoryIsNeverExhausted spawns more than fit, at once: each is there and
// answers, or was refused with the numbers; no sandbox is lost for the others.
func TestMemoryIsNeverExhausted(t *testing.T) { // not parallel: it uses up the machine
	// In the short mode the machine is made smaller by its reserve.
	heapMB, spawns, settings := 300, 12, harness.Settings{"memory-reserve": max(1, machineMB(t, "MemAvailable")-3000)}
	if long {
		heapMB, spawns, settings = 1000, 40, nil
	}
	s := ownServer(t, "", settings)
	source := create(t, s, "--memory", fmt.Sprint(2*heapMB))
	source.heap(heapMB, 5)
	sum := source.heapSum()
	source.count()
	cp := source.checkpoint("big")

	var mu sync.Mutex
	var made []box
	var wg sync.WaitGroup
	turns := make(chan struct{}, 8)
	for range spawns {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			res, err := api(t, s).SpawnCheckpoint(t.Context(), cp, client.SpawnRequest{})
			if err != nil {
				shortOfMemory(t, err, http.StatusServiceUnavailable)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			made = append(made, box{t, s, res.ID})
		})
	}
	wg.Wait()
	t.Logf("%d of %d spawns of %d MB were made; %d MB are available", len(made), spawns, heapMB, machineMB(t, "MemAvailable"))
	if len(made) == 0 || len(made) == spawns && machineMB(t, "MemTotal") < spawns*heapMB {
		t.Errorf("%d of %d were made", len(made), spawns)
	}
	// The last ones load slowly, because little memory is left.
	awaitFor(t, loadTime, "all are loaded", func() bool { return s.Loading() == 0 })
	for _, b := range append(made, source) {
		b.answers()
		b.countOn(3)
	}
	if got := made[len(made)-1].heapSum(); got != sum {
		t.Errorf("the heap of a clone is %s, not %s", got, sum)
	}
	for _, sb := range asJSON[[]client.Sandbox](t, s, "ls") {
		if sb.Status != client.StatusRunning {
			t.Errorf("%+v", sb)
		}
	}
}

// TestWhatDoesNotFitIsRefused asks for more than the machine can ever have, and
// for anything on a machine that has nothing left.
func TestWhatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	b := create(t, s)
	b.heap(100, 3)
	b.count()
	cp := b.checkpoint("c")

	total := machineMB(t, "MemTotal")
	must(t, s.Set("memory-reserve", max(1, total-4000)))
	restart(t, s)
	_, err := api(t, s).SpawnCheckpoint(t.Context(), cp, client.SpawnRequest{Count: 100})
	shortOfMemory(t, err, http.StatusTooManyRequests)

	must(t, s.Set("memory-reserve", total-300))
	restart(t, s)
	for _, args := range [][]string{
		{"create", "--template", "small"}, {"checkpoint", "spawn", cp}, {"checkpoint", "restore", b.id, cp, "--no-save"},
		{"checkpoint", "create", b.id, "--name", "full"}, {"fork", b.id},
	} {
		refused(t, s, 5, []string{"not enough memory", "MB available"}, args...)
	}
	b.answers()
	b.countOn(5)

	must(t, s.Set("memory-reserve", 0))
	restart(t, s)
	spawn(t, s, cp).countOn(5)
	b.restore(cp)
	b.countOn(5)
}
