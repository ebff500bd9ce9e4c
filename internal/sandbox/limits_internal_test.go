// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"testing"
	"time"
)

// A restore of many, or of much, may take longer than one of little.
func TestRestoreTimeoutGrows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		count  int
		memory int64
		want   time.Duration
	}{{1, 0, 181 * time.Second}, {100, 0, 280 * time.Second}, {1, 1 << 30, 245 * time.Second}} {
		if got := restoreTimeout(c.count, c.memory); got != c.want {
			t.Errorf("%d of %d bytes: %v, want %v", c.count, c.memory, got, c.want)
		}
	}
}
