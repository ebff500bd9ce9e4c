// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"
)

// idleSpawns is how many idle spawns a fork may take, beside its pause.
const idleSpawns = 1.5

// forks is what forks took: the time to the first command, and what is wanted.
type forks struct{ took, limit sample }

// fork: from the call to the first answer of the clone, beside the pause that
// was seen in the source and one and a half of a spawn of an idle sandbox. The
// fork of memory that was never captured is told apart from later ones, before
// each of which 1 % of it is made anew.
func (b *bench) fork(ctx context.Context, sc *scene) (err error) {
	idler, err := newBox(ctx, b.ours, idle)
	if err != nil {
		return err
	}
	small, err := b.ours.Checkpoint(ctx, idler)
	if err != nil {
		return errors.Join(err, b.ours.Kill(ctx, idler))
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, b.ours.Kill(ctx, idler), b.ours.Forget(ctx, small))
	}()
	var first, later forks
	for range b.few() {
		if err = b.forkRun(ctx, sc.load, small, &first, &later); err != nil {
			break
		}
	}
	const than = "pause + 1.5 idle spawns"
	b.promises = append(b.promises,
		promise{sc.load.name + ": fork of memory that was never captured, to first command", "ms", first.took, than, first.limit, ""},
		promise{sc.load.name + ": fork, 1 % changed, to first command", "ms", later.took, than, later.limit, "≤ 1.0"})
	return err
}

// forkRun forks one sandbox several times.
func (b *bench) forkRun(ctx context.Context, w workload, small image, first, later *forks) error {
	source, err := newBox(ctx, b.ours, w)
	if err != nil {
		return err
	}
	to, last := first, image{}
	for range 1 + laterOnes {
		if last.id != "" {
			if _, err := b.ours.Ask(ctx, source, "change", "1"); err != nil {
				return err
			}
		}
		now, err := to.add(ctx, b.ours, source, small)
		if err != nil {
			return err
		}
		if last.id != "" {
			if err := b.ours.Forget(ctx, last); err != nil {
				return err
			}
		}
		to, last = later, now
	}
	return errors.Join(b.ours.Kill(ctx, source), b.ours.Forget(ctx, last))
}

// add spawns the idle sandbox, forks the source, and waits for the checkpoint.
func (f *forks) add(ctx context.Context, o *ours, source box, small image) (image, error) {
	spawned, err := timed(func() error {
		made, err := o.Spawn(ctx, small, 1)
		return errors.Join(err, o.Kill(ctx, made...))
	})
	if err != nil {
		return image{}, err
	}
	var clone box
	var img image
	var took time.Duration
	pause, err := ticks(ctx, o, source, func() (err error) {
		took, err = timed(func() (err error) { clone, img, err = o.Fork(ctx, source); return err })
		return err
	})
	if err != nil {
		return image{}, err
	}
	f.took.addTime(took)
	f.limit.addTime(pause + time.Duration(idleSpawns*float64(spawned)))
	if err := o.Kill(ctx, clone); err != nil {
		return image{}, err
	}
	_, err = o.server.client.WaitCheckpoint(ctx, img.id)
	return img, err
}
