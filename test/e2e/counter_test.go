// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testdata gives the path of a file of testdata.
func testdata(t testing.TB, file string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// tick is a line that testdata/counter.py writes.
type tick struct {
	n         int
	wall      float64 // seconds since the epoch
	monotonic float64 // seconds
	pid       int
}

// count starts the counter.
func (b box) count() {
	b.t.Helper()
	b.push("counter.py")
	b.start("python3", "counter.py")
	b.countOn(10)
}

// ticks reads all that the counter has written, and checks that one process
// counted without a number lost or doubled, and that no clock of its went
// backwards.
func (b box) ticks() []tick {
	b.t.Helper()
	var out []tick
	for line := range strings.Lines(b.sh("cat count.log")) {
		var k tick
		if _, err := fmt.Sscan(line, &k.n, &k.wall, &k.monotonic, &k.pid); err != nil {
			continue // the last line, being written
		}
		if k.n != len(out)+1 {
			b.t.Fatalf("%s: %d stands where %d should", b.id, k.n, len(out)+1)
		}
		if len(out) > 0 {
			last := out[len(out)-1]
			if k.pid != last.pid {
				b.t.Fatalf("%s: another process counts on from %d", b.id, last.n)
			}
			if k.monotonic < last.monotonic {
				b.t.Fatalf("%s: the monotonic clock went back by %f s at %d", b.id, last.monotonic-k.monotonic, k.n)
			}
		}
		out = append(out, k)
	}
	return out
}

// counted is the newest number.
func (b box) counted() int {
	b.t.Helper()
	var k tick
	_, _ = fmt.Sscan(b.sh("tail -n 2 count.log 2>/dev/null | head -n 1"), &k.n) // 0 before the first one
	return k.n
}

// countOn waits until the counter has gone on by so much.
func (b box) countOn(by int) {
	b.t.Helper()
	from := b.counted()
	await(b.t, fmt.Sprintf("%s counts on from %d", b.id, from), func() bool { return b.counted() >= from+by })
}

// common is how many lines two logs have in common before they part.
func common(a, b []tick) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// longestGap is the longest time between two numbers, from the number n on.
func longestGap(ticks []tick, n int) time.Duration {
	var gap float64
	for i := max(n, 1); i < len(ticks); i++ {
		gap = max(gap, ticks[i].wall-ticks[i-1].wall)
	}
	return time.Duration(gap * float64(time.Second))
}
