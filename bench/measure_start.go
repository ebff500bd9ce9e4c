// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

// refillBreak is the time before a create or spawn in which the pool can be filled again.
const refillBreak = time.Second

// create: from the call to the first answer of a new sandbox, after a break, and
// again without one.
func (b *bench) create(ctx context.Context, sc *scene) error {
	if err := b.createEvery(ctx, sc, refillBreak, "create to first command, one a second"); err != nil {
		return err
	}
	return b.createEvery(ctx, sc, 0, "create to first command, without a break")
}

func (b *bench) createEvery(ctx context.Context, sc *scene, after time.Duration, name string) error {
	var took [2]sample
	err := b.each(ctx, b.opts.runs, func(i int, s subject) error {
		if err := sleep(ctx, after); err != nil {
			return err
		}
		var made box
		d, err := timed(func() (err error) { made, err = s.Create(ctx); return err })
		if err != nil {
			return err
		}
		took[i].addTime(d)
		return s.Kill(ctx, made)
	})
	b.add(sc, "ms", name, took)
	return err
}

// execFactor is how many more runs the short exec gets.
const execFactor = 5

// exec: one command that only answers, in an idle sandbox.
func (b *bench) exec(ctx context.Context, sc *scene) error {
	if err := b.prepare(ctx, sc); err != nil {
		return err
	}
	var api, cli [2]sample
	for i, s := range b.sides() { // the first one warms up connection and caches
		if err := s.Exec(ctx, sc.box[i]); err != nil {
			return err
		}
	}
	err := b.each(ctx, execFactor*b.opts.runs, func(i int, s subject) error {
		d, err := timed(func() error { return s.Exec(ctx, sc.box[i]) })
		api[i].addTime(d)
		if s == subject(b.ours) && err == nil {
			d, err = timed(func() error { return b.ours.execCLI(ctx, sc.box[i]) })
			cli[i].addTime(d)
		}
		return err
	})
	cli[1] = api[1] // runsc exec is a command line
	b.add(sc, "ms", "exec round trip, API on a warm connection", api)
	b.add(sc, "ms", "exec round trip, `oc exec`", cli)
	return err
}
