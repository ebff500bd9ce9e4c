// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"testing"
	"time"
)

func TestCaptureTimeGrowsWithTheWork(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for _, tt := range []struct {
		bytes, engine int64
		want          time.Duration
	}{
		{0, 0, 20 * time.Second},
		{512 << 20, 0, 25 * time.Second},
		{10 * gib, 0, 2 * time.Minute},
		{0, 1_000_000 * 4096, 220 * time.Second}, // a million files, which take 45 s
		{gib, 50_000 * 4096, 40 * time.Second},
	} {
		if got := captureTime(tt.bytes, tt.engine); got != tt.want {
			t.Errorf("%d bytes, %d of the engine: %v, want %v", tt.bytes, tt.engine, got, tt.want)
		}
	}
}
