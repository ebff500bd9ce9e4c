// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// quietTicks is for how long the ticker is watched without a checkpoint.
const quietTicks = 200 * time.Millisecond

// checkpoint: the pause that a process in the sandbox sees, and the time until
// the checkpoint can be used. The first capture of memory is told apart, because
// the engine takes longer for it; a few sandboxes are made for it, and the last
// ones stay in the scene.
func (b *bench) checkpoint(ctx context.Context, sc *scene) error {
	var first, pause, ready, quiet [2]sample
	for range b.few() {
		if err := b.replace(ctx, sc); err != nil {
			return err
		}
		err := b.each(ctx, 1, func(i int, s subject) error {
			p, _, err := b.capture(ctx, sc, i, s)
			first[i].addTime(p)
			return err
		})
		if err != nil {
			return err
		}
	}
	err := b.each(ctx, b.opts.runs, func(i int, s subject) error {
		q, err := ticks(ctx, s, sc.box[i], func() error { return sleep(ctx, quietTicks) })
		if err != nil {
			return err
		}
		quiet[i].addTime(q)
		p, r, err := b.capture(ctx, sc, i, s)
		if err != nil {
			return err
		}
		pause[i].addTime(p)
		ready[i].addTime(r)
		return nil
	})
	b.add(sc, "ms", "pause, seen inside", pause)
	b.add(sc, "ms", "pause of the first checkpoint", first)
	b.add(sc, "ms", "longest tick without a checkpoint", quiet)
	b.add(sc, "ms", "checkpoint to ready", ready)
	return errors.Join(err, b.forget(ctx, sc))
}

// forget removes the scene's checkpoints, which were taken of a ticking guest: a
// hundred clones that wake each millisecond would keep the machine busy.
func (b *bench) forget(ctx context.Context, sc *scene) error {
	var errs []error
	for i, s := range b.sides() {
		if sc.image[i].id != "" {
			errs = append(errs, s.Forget(ctx, sc.image[i]))
			sc.image[i] = image{}
		}
	}
	return errors.Join(errs...)
}

// replace gives the scene new sandboxes without a checkpoint.
func (b *bench) replace(ctx context.Context, sc *scene) error {
	if err := b.clear(ctx, sc); err != nil {
		return err
	}
	sc.box, sc.image = [2]box{}, [2]image{}
	for i, s := range b.sides() {
		var err error
		if sc.box[i], err = newBox(ctx, s, sc.load); err != nil {
			return err
		}
	}
	return nil
}

// capture makes a checkpoint in place of the scene's.
func (b *bench) capture(ctx context.Context, sc *scene, i int, s subject) (pause, ready time.Duration, err error) {
	if old := sc.image[i]; old.id != "" {
		sc.image[i] = image{}
		if err := s.Forget(ctx, old); err != nil {
			return 0, 0, err
		}
	}
	c, err := capture(ctx, s, sc.box[i])
	sc.image[i] = c.image
	return c.pause, c.ready, err
}

// captured is a checkpoint with the pause that a process in the sandbox saw, and
// the time until it could be used.
type captured struct {
	image        image
	pause, ready time.Duration
}

// capture makes a checkpoint.
func capture(ctx context.Context, s subject, b box) (c captured, err error) {
	c.pause, err = ticks(ctx, s, b, func() (err error) {
		c.ready, err = timed(func() (err error) { c.image, err = s.Checkpoint(ctx, b); return err })
		return err
	})
	return c, err
}

// ticks gives the longest time between two ticks in the sandbox during f.
func ticks(ctx context.Context, s subject, b box, f func() error) (time.Duration, error) {
	if _, err := s.Ask(ctx, b, "tick"); err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	answer, err := s.Ask(ctx, b, "gap")
	if err != nil {
		return 0, err
	}
	us, err := strconv.ParseInt(strings.TrimSpace(answer), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the ticker answered %q", answer)
	}
	return time.Duration(us) * time.Microsecond, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
