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
// each of which 1 % of it is made anew. The pause of a later one is that of the
// fork before it: who ticks each millisecond to see it goes on in the clone, and
// the two take most of a CPU, which the spawn that is compared with has.
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
	pause, took, last, err := forkOnce(ctx, b.ours, source, image{}, true)
	if err != nil {
		return err
	}
	spawned, err := idleSpawn(ctx, b.ours, small)
	if err != nil {
		return err
	}
	first.add(took, pause, spawned)
	for range laterOnes {
		if pause, _, last, err = forkOnce(ctx, b.ours, source, last, true); err != nil {
			return err
		}
		if spawned, err = idleSpawn(ctx, b.ours, small); err != nil {
			return err
		}
		if _, took, last, err = forkOnce(ctx, b.ours, source, last, false); err != nil {
			return err
		}
		later.add(took, pause, spawned)
	}
	return errors.Join(b.ours.Kill(ctx, source), b.ours.Forget(ctx, last))
}

func (f *forks) add(took, pause, spawned time.Duration) {
	f.took.addTime(took)
	f.limit.addTime(pause + time.Duration(idleSpawns*float64(spawned)))
}

// idleSpawn is the time of a spawn of the idle sandbox to its first answer, after a
// break.
func idleSpawn(ctx context.Context, o *ours, small image) (time.Duration, error) {
	if err := sleep(ctx, refillBreak); err != nil {
		return 0, err
	}
	var made []box
	took, err := timed(func() (err error) { made, err = o.Spawn(ctx, small, 1); return err })
	return took, errors.Join(err, o.Kill(ctx, made...))
}

// forkOnce forks the source after a break, of which 1 % is made anew where it was
// captured before, with a ticker in it that sees the pause or without, and waits for
// the checkpoint, in the place of the one before.
func forkOnce(ctx context.Context, o *ours, source box, last image, ticking bool) (pause, took time.Duration, img image, err error) {
	if last.id != "" {
		if _, err := o.Ask(ctx, source, "change", "1"); err != nil {
			return 0, 0, img, err
		}
	}
	if err := sleep(ctx, refillBreak); err != nil {
		return 0, 0, img, err
	}
	var clone box
	fork := func() (err error) {
		took, err = timed(func() (err error) { clone, img, err = o.Fork(ctx, source); return err })
		return err
	}
	if ticking {
		pause, err = ticks(ctx, o, source, fork)
	} else {
		err = fork()
	}
	if err == nil {
		err = o.Kill(ctx, clone)
	}
	if err == nil {
		_, err = o.server.client.WaitCheckpoint(ctx, img.id)
	}
	if err == nil && last.id != "" {
		err = o.Forget(ctx, last)
	}
	return pause, took, img, err
}
