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
	taken := map[engine.Process]pauses{}
	for b.Loop() {
		for _, p := range []engine.Process{sleeper, agent} {
			ctx, cancel := context.WithTimeout(b.Context(), enginetest.Patience)
			c, err := host.Capture(ctx, p, inMemory)
			cancel()
			if err != nil {
				b.Fatal(err)
			}
			taken[p] = append(taken[p], c.Pause)
			c.Close()
		}
	}
	b.ReportMetric(taken[agent].median(), "agent-ms")
	b.ReportMetric(taken[sleeper].median(), "sleep-ms")
	b.ReportMetric(taken[agent].median()/taken[sleeper].median(), "ratio")
	b.ReportMetric(0, "ns/op")
}

// pauses of several captures.
type pauses []time.Duration

// median of them in milliseconds.
func (ps pauses) median() float64 {
	sorted := slices.Sorted(slices.Values(ps))
	return float64(sorted[len(sorted)/2]) / float64(time.Millisecond)
}
