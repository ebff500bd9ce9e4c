// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"context"
	"slices"
	"sync"
	"time"
)

// clock stands still until a test moves it.
type clock struct {
	mu    sync.Mutex
	now   time.Duration
	waits []*wait
}

type wait struct {
	until time.Duration
	over  chan struct{}
}

// since gives how far the clock has been moved.
func (c *clock) since() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// pause is the package's, by this clock.
func (c *clock) pause(ctx context.Context, d time.Duration) bool {
	c.mu.Lock()
	w := &wait{c.now + d, make(chan struct{})}
	c.waits = append(c.waits, w)
	c.mu.Unlock()
	select {
	case <-w.over:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// advance moves the clock and wakes whose time has come.
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	c.waits = slices.DeleteFunc(c.waits, func(w *wait) bool {
		due := w.until <= c.now
		if due {
			close(w.over)
		}
		return due
	})
}
