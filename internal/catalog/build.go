// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"sync"

	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/template"
)

// build is one run of a recipe that several requests may wait for. It goes on
// when they go away.
type build struct {
	done chan struct{}
	t    meta.Template
	err  error

	mu        sync.Mutex
	listeners map[*func(string)]struct{}
}

// say gives a line to everybody who waits.
func (b *build) say(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		(*l)(line)
	}
}

func (b *build) listen(progress func(string)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listeners[&progress] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, &progress)
	}
}

// shared joins the build of the name, or begins it.
func (c *Catalog) shared(ctx context.Context, name string, progress func(string), run func(template.Progress) (meta.Template, error)) (meta.Template, error) {
	c.mu.Lock()
	b := c.builds[name]
	if b == nil {
		b = &build{done: make(chan struct{}), listeners: map[*func(string)]struct{}{}}
		c.builds[name] = b
		go func() {
			defer close(b.done)
			b.t, b.err = run(b.say)
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.builds, name)
		}()
	}
	stop := b.listen(progress)
	c.mu.Unlock()
	defer stop()
	select {
	case <-b.done:
		return b.t, b.err
	case <-ctx.Done():
		return meta.Template{}, ctx.Err()
	}
}
