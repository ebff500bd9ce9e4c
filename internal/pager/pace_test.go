// SPDX-License-Identifier: Apache-2.0

package pager

import "testing"

func TestPaceFollowsTheMemory(t *testing.T) {
	t.Parallel()
	const low, full = 1000, 5 << 20
	p := NewPace(full, low)
	for i, step := range []struct{ available, want int64 }{
		{low, full},
		{low - 1, full / 2},
		{0, full / 4},
		{0, slowest},
		{0, slowest},
		{low, 2 * slowest},
		{low - 1, slowest},
		{2 * low, 2 * slowest},
		{low, 4 * slowest},
		{low, full},
		{low, full},
	} {
		if got := p.Next(step.available); got != step.want {
			t.Errorf("step %d: %d bytes/s with %d bytes, want %d", i, got, step.available, step.want)
		}
	}
}

// A rate that is set below the floor stays what was set.
func TestPaceKeepsASlowRate(t *testing.T) {
	t.Parallel()
	p := NewPace(1000, 1)
	for _, available := range []int64{0, 0, 1, 1} {
		if got := p.Next(available); got != 1000 {
			t.Errorf("%d bytes/s", got)
		}
	}
}
