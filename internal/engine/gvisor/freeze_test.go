// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/engine/gvisor"
)

// capturing is a way to capture a generation.
type capturing func(t *testing.T, d *gvisor.Driver, p engine.Process, opts engine.CaptureOptions) (*engine.Capture, error)

// waysToCapture are both, the second of which thaws at once.
var waysToCapture = map[string]capturing{
	"plain": func(t *testing.T, d *gvisor.Driver, p engine.Process, opts engine.CaptureOptions) (*engine.Capture, error) {
		return d.Capture(t.Context(), p, opts)
	},
	"held": func(t *testing.T, d *gvisor.Driver, p engine.Process, opts engine.CaptureOptions) (*engine.Capture, error) {
		c, held, err := d.CaptureHeld(t.Context(), p, opts, time.Minute)
		if err == nil {
			err = held.Thaw(t.Context())
		}
		return c, err
	},
}

// Just before the freeze somebody is asked, to whom the guest still answers and who
// may give the capture up. What is done by then is captured.
func TestBeforeFreeze(t *testing.T) {
	t.Parallel()
	for name, capture := range waysToCapture {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := host.Start(t, enginetest.Shape())
			counter := g.Begin(t, steady)
			for round := range 2 { // by a new helper, and where it is plain by one that stayed
				asked := 0
				opts := inMemory
				opts.BeforeFreeze = func() error {
					asked++
					g.Must(t, "date >>/root/asked")
					return nil
				}
				c, err := capture(t, host.Driver, g.Process, opts)
				if err != nil || asked != 1 {
					t.Fatalf("round %d: asked %d times, %v", round, asked, err)
				}
				_, clones := restore(t, keep(t, c), g, 1)
				if got := clones[0].Must(t, "wc -l </root/asked"); got != g.Must(t, "wc -l </root/asked") {
					t.Errorf("round %d: the capture was asked for %s times", round, got)
				}
				counts(t, clones[0], counter)

				refused := errors.New("not now")
				opts.BeforeFreeze = func() error { return refused }
				if _, err := capture(t, host.Driver, g.Process, opts); !errors.Is(err, refused) {
					t.Errorf("round %d: given up with: %v", round, err)
				}
				counts(t, g, counter)
				c, err = capture(t, host.Driver, g.Process, inMemory)
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				counts(t, g, counter)
			}
		})
	}
}

// A build that does not ask freezes only when it may, too.
func TestBeforeFreezeByAnotherBuild(t *testing.T) {
	t.Parallel()
	p := newPair(t, 16, 0)
	refused := errors.New("not now")
	for name, capture := range waysToCapture {
		asked := 0
		opts := inMemory
		opts.BeforeFreeze = func() error {
			asked++
			p.source.Must(t, "true")
			return refused
		}
		if _, err := capture(t, p.Driver, p.source.Process, opts); !errors.Is(err, refused) || asked != 1 {
			t.Errorf("%s: asked %d times, given up with: %v", name, asked, err)
		}
		refused = nil
		c, err := capture(t, p.Driver, p.source.Process, opts)
		if err != nil || asked != 2 {
			t.Fatalf("%s: asked %d times, %v", name, asked, err)
		}
		c.Close()
		refused = errors.New("not now")
		intact(t, p.source, p.count)
	}
}

// Who waits for the answer and is left by its server ends, and nothing was frozen.
func TestDeadlineBeforeTheFreeze(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := g.Begin(t, steady)
	for name, capture := range map[string]func(context.Context, engine.CaptureOptions) error{
		"plain": func(ctx context.Context, opts engine.CaptureOptions) error {
			_, err := host.Capture(ctx, g.Process, opts)
			return err
		},
		"held": func(ctx context.Context, opts engine.CaptureOptions) error {
			_, _, err := host.CaptureHeld(ctx, g.Process, opts, time.Minute)
			return err
		},
	} {
		gone := errors.New("nobody waits any more")
		ctx, cancel := context.WithCancelCause(t.Context())
		opts := inMemory
		opts.BeforeFreeze = func() error {
			cancel(gone)
			return context.Cause(ctx)
		}
		if err := capture(ctx, opts); !errors.Is(err, gone) {
			t.Errorf("%s: %v", name, err)
		}
		counts(t, g, counter)
	}
}

// A capture waits for a store that is slow to give what is still to be loaded, for
// longer than its own work may take.
func TestCaptureWhileLoadingSlowly(t *testing.T) {
	t.Parallel()
	const mb, rate = 160, 6 << 20 // 27 s
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, mb)
	c, err := host.Capture(t.Context(), g.Process, inMemory)
	if err != nil {
		t.Fatal(err)
	}
	opts := inMemory
	opts.Bytes = c.PagesSize
	image := keep(t, c)
	d := hostIn(t, t.TempDir(), func(cfg *gvisor.Config) { cfg.BulkRate = rate })
	t.Cleanup(d.Close)
	spec := enginetest.Spec(t, g.Spec.Shape)
	h, guest := enginetest.Pair(t)
	r, err := d.Restore(t.Context(), source(image), []engine.Target{{Spec: spec, Stdin: guest}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	if err := r.Await(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	clone := host.Adopt(t, r.Processes()[0], spec, h)
	r.Release()
	began := time.Now()
	opts.BeforeFreeze = func() error {
		select {
		case <-r.Loaded():
			return nil
		case <-time.After(enginetest.Patience):
			return errors.New("it is to be frozen, and still loads")
		}
	}
	c, err = d.Capture(t.Context(), clone.Process, opts)
	if err != nil {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
	if took := time.Since(began); took < 20*time.Second {
		t.Errorf("it took only %v: this shows nothing", took)
	}
	_, clones := restore(t, keep(t, c), g, 1)
	intact(t, clones[0], counter)
}
