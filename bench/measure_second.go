// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

// laterOnes is how many checkpoints follow the first one of a sandbox.
const laterOnes = 3

// seconds is what the first checkpoints of sandboxes and later ones took, on both
// sides.
type seconds struct {
	firstPause, firstReady [2]sample
	pause, ready           [2]sample
	firstAdded, added      sample
}

// second: the first checkpoint of a sandbox, and some after it, before each of
// which 1 % of its memory's pages are made anew.
func (b *bench) second(ctx context.Context, sc *scene) error {
	return b.own(ctx, settings{}, func(o *ours) error {
		build, err := storeBuild(ctx, o)
		if err != nil {
			return err
		}
		var t seconds
		err = alternate(ctx, b.few(), [2]subject{o, b.bare}, func(i int, s subject) error {
			return t.run(ctx, i, s, sc.load)
		})
		b.promises = append(b.promises, t.promises(sc.load, build)...)
		return err
	})
}

// storeBuild makes the first checkpoint of a store, of an idle sandbox. It brings
// in the engine's build and the image, which stay for as long as it does.
func storeBuild(ctx context.Context, o *ours) (time.Duration, error) {
	idler, err := newBox(ctx, o, idle)
	if err != nil {
		return 0, err
	}
	took, err := timed(func() error { _, err := o.Checkpoint(ctx, idler); return err })
	if err != nil {
		return 0, err
	}
	return took, o.Kill(ctx, idler)
}

// run takes the times of one sandbox.
func (t *seconds) run(ctx context.Context, side int, s subject, w workload) error {
	b, err := newBox(ctx, s, w)
	if err != nil {
		return err
	}
	last, err := capture(ctx, s, b)
	if err != nil {
		return err
	}
	t.firstPause[side].addTime(last.pause)
	t.firstReady[side].addTime(last.ready)
	if err := addAdded(ctx, s, last.image, &t.firstAdded); err != nil {
		return err
	}
	for range laterOnes {
		now, err := captureChanged(ctx, s, b, last.image)
		if err != nil {
			return err
		}
		t.pause[side].addTime(now.pause)
		t.ready[side].addTime(now.ready)
		if err := addAdded(ctx, s, now.image, &t.added); err != nil {
			return err
		}
		last = now
	}
	if err := s.Kill(ctx, b); err != nil {
		return err
	}
	return s.Forget(ctx, last.image)
}

// captureChanged makes a checkpoint when 1 % of the memory has changed since the
// one before, which it removes.
func captureChanged(ctx context.Context, s subject, b box, before image) (captured, error) {
	if _, err := s.Ask(ctx, b, "change", "1"); err != nil {
		return captured{}, err
	}
	c, err := capture(ctx, s, b)
	if err != nil {
		return c, err
	}
	return c, s.Forget(ctx, before)
}

// addAdded notes what a checkpoint of ours added to the store.
func addAdded(ctx context.Context, s subject, img image, to *sample) error {
	o, ok := s.(*ours)
	if !ok {
		return nil
	}
	n, err := o.added(ctx, img)
	to.addBytes(n)
	return err
}

func (t *seconds) promises(w workload, build time.Duration) []promise {
	var thrown sample
	thrown.addTime(build)
	const bare, first = "bare engine", "the first one"
	return []promise{
		{measure: "idle: first checkpoint of a store, with engine build and image", unit: "ms", ours: thrown},
		{measure: w.name + ": first checkpoint to ready", unit: "ms", ours: t.firstReady[0], beside: bare, other: t.firstReady[1]},
		{measure: "– its pause, seen inside", unit: "ms", ours: t.firstPause[0], beside: bare, other: t.firstPause[1]},
		{measure: w.name + ": a later checkpoint, 1 % changed, to ready", unit: "ms", ours: t.ready[0], beside: first, other: t.firstReady[0], wanted: "≤ 0.15"},
		{measure: "– its pause, seen inside", unit: "ms", ours: t.pause[0], beside: bare, other: t.pause[1], wanted: "≤ 0.4"},
		{measure: "– what it adds to the store", unit: "MiB", ours: t.added, beside: first, other: t.firstAdded, wanted: "≤ 0.02"},
	}
}
