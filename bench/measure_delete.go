// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"
)

// spaceBack bounds the wait for the space of a deleted checkpoint.
const spaceBack = 5 * time.Minute

// deletion: from the call that deletes a checkpoint, the only one that needs its
// pages, until the store is as small as before.
func (b *bench) deletion(ctx context.Context, sc *scene) error {
	return b.own(ctx, settings{}, func(o *ours) error {
		if _, err := storeBuild(ctx, o); err != nil {
			return err
		}
		source, err := newBox(ctx, o, sc.load)
		if err != nil {
			return err
		}
		var answered, back, freed sample
		for range b.few() {
			before, err := storedBytes(o.server.store())
			if err != nil {
				return err
			}
			img, err := o.Checkpoint(ctx, source)
			if err != nil {
				return err
			}
			full, err := storedBytes(o.server.store())
			if err != nil {
				return err
			}
			d, err := timed(func() error { return o.Forget(ctx, img) })
			if err != nil {
				return err
			}
			rest, err := timed(func() error { return smallAgain(ctx, o, before+(full-before)/100) })
			if err != nil {
				return err
			}
			answered.addTime(d)
			back.addTime(d + rest)
			freed.addBytes(full - before)
		}
		b.promises = append(b.promises,
			promise{measure: sc.load.name + ": checkpoint deleted, until its space is back", unit: "ms", ours: back, wanted: "≤ 60000"},
			promise{measure: "– until the answer", unit: "ms", ours: answered},
			promise{measure: "– space", unit: "MiB", ours: freed})
		return nil
	})
}

// smallAgain waits until the store takes no more than a number of bytes.
func smallAgain(ctx context.Context, o *ours, most int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, spaceBack, errors.New("the space of a deleted checkpoint does not come back"))
	defer cancel()
	for {
		n, err := storedBytes(o.server.store())
		if err != nil || n <= most {
			return err
		}
		if err := sleep(ctx, memoryStep); err != nil {
			return context.Cause(ctx)
		}
	}
}
