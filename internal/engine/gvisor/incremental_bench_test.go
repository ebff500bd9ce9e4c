// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"fmt"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
)

// toucher holds random memory, and writes to every hundredth page of it when
// /run/touch is made.
const toucher = `exec python3 -c '
import os, time
size, step = %d << 20, 100 << 12
heap = bytearray(os.urandom(size))
n = 0
while True:
    if n == 0 or os.path.exists("/run/touch"):
        for at in range(0, size, step): heap[at] = (heap[at] + 1) & 255
        n += 1
        with open("/run/touched~", "w") as f: f.write(str(n))
        os.rename("/run/touched~", "/run/touched")
        if n > 1: os.remove("/run/touch")
    time.sleep(0.01)
'`

// BenchmarkIncrementalPause compares the pause of a capture of all of 1 GiB with
// that of a capture on an earlier one since which 1 % of the pages changed, by the
// engine's clock. The medians are reported.
func BenchmarkIncrementalPause(b *testing.B) {
	const mb = 1 << 10
	s := enginetest.Shape()
	s.MemoryBytes = 3 << 30
	g := host.Start(b, s)
	g.Begin(b, fmt.Sprintf(toucher, mb))
	enginetest.Eventually(b, "the heap is filled", func() bool {
		_, code := g.Run(b, "test -f /run/touched")
		return code == 0
	})
	capture := func(opts engine.CaptureOptions) *engine.Capture {
		g.Must(b, "touch /run/touch; while test -f /run/touch; do sleep 0.01; done")
		c, err := host.Capture(b.Context(), g.Process, opts)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	c := capture(inMemory)
	base := &engine.Base{Ranges: c.Ranges, Seed: 0x0c}
	page := make([]byte, engine.PageSize)
	for at := int64(0); at < c.PagesSize; at += engine.PageSize {
		if _, err := c.Pages.ReadAt(page, at); err != nil {
			b.Fatal(err)
		}
		base.Hashes = append(base.Hashes, xxh3.HashSeed(page, base.Seed))
	}
	c.Close()
	onBase := inMemory
	onBase.Base, onBase.Expect = base, mb<<20/100
	var all, part pauses
	for b.Loop() {
		c := capture(inMemory)
		all = append(all, c.Pause)
		c.Close()
		c = capture(onBase)
		part = append(part, c.Pause)
		b.ReportMetric(float64(c.CopiedBytes())/float64(c.PagesSize), "copied/all")
		c.Close()
	}
	b.ReportMetric(all.median(), "all-ms")
	b.ReportMetric(part.median(), "base-ms")
	b.ReportMetric(part.median()/all.median(), "ratio")
	b.ReportMetric(0, "ns/op")
}
