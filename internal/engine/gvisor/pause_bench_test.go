// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/template/templatetest"
)

// BenchmarkIdlePause compares the pause of a sandbox that runs nothing but our
// agent with that of one that runs only `sleep`, by the engine's clock. The
// medians are reported.
func BenchmarkIdlePause(b *testing.B) {
	spec := enginetest.Spec(b, enginetest.Shape())
	spec.ImagePath = templatetest.Image(b, []byte("#!/bin/sh\nexec sleep 1000000\n")).Path
	_, stdin := enginetest.Pair(b)
	sleeper, err := host.Driver.Start(b.Context(), spec, stdin)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := host.Destroy(context.Background(), sleeper); err != nil {
			b.Error(err)
		}
	}()
	agent := host.Start(b, enginetest.Shape()).Process
	pauses := map[engine.Process][]time.Duration{}
	for b.Loop() {
		for _, p := range []engine.Process{sleeper, agent} {
			ctx, cancel := context.WithTimeout(b.Context(), enginetest.Patience)
			c, err := host.Capture(ctx, p, inMemory)
			cancel()
			if err != nil {
				b.Fatal(err)
			}
			pauses[p] = append(pauses[p], c.Pause)
			c.Close()
		}
	}
	median := func(ds []time.Duration) float64 {
		slices.Sort(ds)
		return float64(ds[len(ds)/2]) / float64(time.Millisecond)
	}
	b.ReportMetric(median(pauses[agent]), "agent-ms")
	b.ReportMetric(median(pauses[sleeper]), "sleep-ms")
	b.ReportMetric(median(pauses[agent])/median(pauses[sleeper]), "ratio")
	b.ReportMetric(0, "ns/op")
}
