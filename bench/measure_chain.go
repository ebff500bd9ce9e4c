// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
)

// chainLength is how many checkpoints are made one after the other.
const chainLength = 50

// chain: the restore in place of the first and of the last of many checkpoints,
// before each of which 1 % of the memory was made anew. Those between are removed
// on the way; the last one still needs what they wrote.
func (b *bench) chain(ctx context.Context, sc *scene) error {
	source, err := newBox(ctx, b.ours, sc.load)
	if err != nil {
		return err
	}
	first, err := b.ours.Checkpoint(ctx, source)
	if err != nil {
		return errors.Join(err, b.ours.Kill(ctx, source))
	}
	last := first
	for range chainLength - 1 {
		if last, err = b.link(ctx, source, first, last); err != nil {
			return errors.Join(err, b.ours.Kill(ctx, source))
		}
	}
	var took [2]sample
	for range b.opts.runs {
		for i, img := range []image{first, last} {
			d, err := timed(func() error { return b.ours.Restore(ctx, source, img) })
			if err == nil {
				err = settled(ctx, b.ours)
			}
			if err != nil {
				return errors.Join(err, b.ours.Kill(ctx, source))
			}
			took[i].addTime(d)
		}
	}
	b.promises = append(b.promises, promise{
		sc.load.name + ": restore of the 50th checkpoint of a chain, to first command", "ms", took[1], "the first one", took[0], "≤ 1.2",
	})
	return errors.Join(b.ours.Kill(ctx, source), b.ours.Forget(ctx, first), b.ours.Forget(ctx, last))
}

// link makes the next checkpoint of the chain.
func (b *bench) link(ctx context.Context, source box, first, last image) (image, error) {
	if _, err := b.ours.Ask(ctx, source, "change", "1"); err != nil {
		return image{}, err
	}
	next, err := b.ours.Checkpoint(ctx, source)
	if err == nil && last != first {
		err = b.ours.Forget(ctx, last)
	}
	return next, err
}
