// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"sync"
)

// flight lets one goroutine at a time work on a key. The zero value is ready.
type flight struct {
	mu   sync.Mutex
	keys map[string]*turn // guarded by mu
}

type turn struct {
	slot  chan struct{} // holds a token while somebody works
	users int           // working or waiting; guarded by flight.mu
}

// enter waits for the turn at a key. The caller runs leave when its work is
// done.
func (f *flight) enter(ctx context.Context, key string) (leave func(), err error) {
	f.mu.Lock()
	if f.keys == nil {
		f.keys = map[string]*turn{}
	}
	t := f.keys[key]
	if t == nil {
		t = &turn{slot: make(chan struct{}, 1)}
		f.keys[key] = t
	}
	t.users++
	f.mu.Unlock()

	select {
	case t.slot <- struct{}{}:
		return func() { <-t.slot; f.drop(key, t) }, nil
	case <-ctx.Done():
		f.drop(key, t)
		return nil, ctx.Err()
	}
}

func (f *flight) drop(key string, t *turn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(f.keys, key)
	}
}
