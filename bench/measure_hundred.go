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

const (
	hundred = 100
	// poolFill bounds how long a large pool may take to be there.
	poolFill = 3 * time.Minute
	// hundredRuns: one run makes a hundred sandboxes on each side.
	hundredRuns = 3
)

// spawnHundred: how many sandboxes of a checkpoint are made and have answered
// in a second, of a hundred at once, with the default pool and with one of a
// hundred, and what memory each has just then.
func (b *bench) spawnHundred(ctx context.Context, sc *scene) error {
	if err := enoughMemory(sc.load, hundred); err != nil {
		return err
	}
	if err := b.prepare(ctx, sc); err != nil {
		return err
	}
	sides := b.sides()
	rate, memory, err := b.hundreds(ctx, sc, sides[:], func() error { return nil })
	b.add(sc, "1/s", fmt.Sprintf("%d spawns at once, answering per second", hundred), rate)
	b.add(sc, "MiB", fmt.Sprintf("memory per spawn of %d, just answered", hundred), memory)
	if err != nil {
		return err
	}
	if err := b.ours.server.restart(ctx, "--pool", strconv.Itoa(hundred)); err != nil {
		return err
	}
	pooled, _, err := b.hundreds(ctx, sc, sides[:1], func() error { return b.fillPool(ctx, sc) })
	b.add(sc, "1/s", fmt.Sprintf("the same with a pool of %d", hundred), [2]sample{pooled[0], rate[1]})
	return errors.Join(err, b.ours.server.restart(ctx))
}

// hundreds makes them, for each side in turn.
func (b *bench) hundreds(ctx context.Context, sc *scene, sides []subject, ready func() error) (rate, memory [2]sample, err error) {
	for range min(hundredRuns, b.opts.runs) {
		for i, s := range sides {
			if err := ready(); err != nil {
				return rate, memory, err
			}
			before, err := s.Memory()
			if err != nil {
				return rate, memory, err
			}
			var made []box
			d, err := timed(func() (err error) { made, err = s.Spawn(ctx, sc.image[i], hundred); return err })
			if err == nil {
				rate[i] = append(rate[i], hundred/d.Seconds())
				var after int64
				if after, err = s.Memory(); err == nil {
					memory[i].addBytes((after - before) / hundred)
				}
			}
			if err = errors.Join(err, s.Kill(context.WithoutCancel(ctx), made...)); err != nil {
				return rate, memory, err
			}
		}
	}
	return rate, memory, nil
}

// fillPool makes a demand and waits until the pool has met it.
func (b *bench) fillPool(ctx context.Context, sc *scene) error {
	ctx, cancel := context.WithTimeoutCause(ctx, poolFill, errors.New("the pool does not fill"))
	defer cancel()
	made, err := b.ours.Spawn(ctx, sc.image[0], 1)
	if err = errors.Join(err, b.ours.Kill(ctx, made...)); err != nil {
		return err
	}
	for {
		n, err := enginesOf(b.ours.server.data())
		if err != nil || n > hundred { // the scene's sandbox is one more
			return err
		}
		if err := sleep(ctx, settleStep); err != nil {
			return context.Cause(ctx)
		}
	}
}

// enginesOf counts the engine processes of dir.
func enginesOf(dir string) (n int, err error) {
	pids, err := processesOf(dir)
	for _, pid := range pids {
		if line, err := commandLine(pid); err == nil && strings.HasPrefix(line, "runsc-sandbox") {
			n++
		}
	}
	return n, err
}
