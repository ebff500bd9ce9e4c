// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// locks keep an artefact from being deleted while it is being opened.
type locks struct {
	mu sync.Mutex
	m  map[string]*rwlock
}

type rwlock struct {
	*semaphore.Weighted // readers take 1, a writer all; in the order in which they asked
	users               int
}

// all is what a writer takes.
const all = 1 << 30

// lock waits until nobody else has the lock of an id.
func (l *locks) lock(ctx context.Context, id string) (unlock func(), err error) {
	return l.take(ctx, id, all)
}

// rlock waits until nobody else has the lock of an id alone.
func (l *locks) rlock(ctx context.Context, id string) (unlock func(), err error) {
	return l.take(ctx, id, 1)
}

func (l *locks) take(ctx context.Context, id string, n int64) (unlock func(), err error) {
	k := l.get(id)
	if err := k.Acquire(ctx, n); err != nil {
		l.put(id, k)
		return nil, err
	}
	return func() { k.Release(n); l.put(id, k) }, nil
}

func (l *locks) get(id string) *rwlock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[string]*rwlock{}
	}
	k := l.m[id]
	if k == nil {
		k = &rwlock{Weighted: semaphore.NewWeighted(all)}
		l.m[id] = k
	}
	k.users++
	return k
}

func (l *locks) put(id string, k *rwlock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.m, id)
	}
}

// held tells whether anybody has or waits for the lock of an id.
func (l *locks) held(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m[id] != nil
}
