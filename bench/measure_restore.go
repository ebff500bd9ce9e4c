// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// restore: in place, from the call to the first answer, and the longest time
// without an answer meanwhile, where what is replaced is lost and where it is saved.
func (b *bench) restore(ctx context.Context, sc *scene) error {
	if err := b.prepare(ctx, sc); err != nil {
		return err
	}
	var took, outage, saved [2]sample
	err := b.each(ctx, b.opts.runs, func(i int, s subject) error {
		d, err := timed(func() error { return s.Restore(ctx, sc.box[i], sc.image[i]) })
		if err != nil {
			return err
		}
		took[i].addTime(d)
		if err := settled(ctx, s); err != nil {
			return err
		}
		for _, to := range []*sample{&outage[i], &saved[i]} {
			o, err := s.Outage(ctx, sc.box[i], sc.image[i], to == &saved[i])
			if err != nil {
				return err
			}
			to.addTime(o)
			if err := settled(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
	b.add(sc, "ms", "restore in place to first command", took)
	b.add(sc, "ms", "longest time without an answer in it", outage)
	b.add(sc, "ms", "the same, with what it replaces saved", saved)
	return err
}

// spawn: from the call to the first answer of one sandbox of a checkpoint, after a
// break, and again without one.
func (b *bench) spawn(ctx context.Context, sc *scene) error {
	if err := b.spawnN(ctx, sc, 1, b.opts.runs, refillBreak, "spawn to first command, one a second"); err != nil {
		return err
	}
	return b.spawnN(ctx, sc, 1, b.opts.runs, 0, "spawn to first command, without a break")
}

// many is how many sandboxes are spawned at once.
const many = 16

// spawnMany: from the call to the last answer of many sandboxes of a checkpoint.
func (b *bench) spawnMany(ctx context.Context, sc *scene) error {
	return b.spawnN(ctx, sc, many, b.few(), refillBreak, fmt.Sprintf("%d spawns at once, all answering", many))
}

func (b *bench) spawnN(ctx context.Context, sc *scene, n, runs int, after time.Duration, name string) error {
	if err := enoughMemory(sc.load, n); err != nil {
		return err
	}
	if err := b.prepare(ctx, sc); err != nil {
		return err
	}
	var took [2]sample
	err := b.each(ctx, runs, func(i int, s subject) error {
		if err := sleep(ctx, after); err != nil {
			return err
		}
		var made []box
		d, err := timed(func() (err error) { made, err = s.Spawn(ctx, sc.image[i], n); return err })
		if err == nil {
			took[i].addTime(d)
		}
		return errors.Join(err, s.Kill(context.WithoutCancel(ctx), made...))
	})
	b.add(sc, "ms", name, took)
	return err
}

// clones is how many sandboxes memory is measured with.
const clones = 4

// memory: what each of a few spawns adds to the memory of all processes, right
// after its first answer and when everything is loaded. The memory of the
// clones is checked against the source's on the way.
func (b *bench) memory(ctx context.Context, sc *scene) error {
	if err := enoughMemory(sc.load, clones); err != nil {
		return err
	}
	if err := b.prepare(ctx, sc); err != nil {
		return err
	}
	var early, late [2]sample
	err := b.each(ctx, b.few(), func(i int, s subject) error {
		before, err := s.Memory()
		if err != nil {
			return err
		}
		made, err := s.Spawn(ctx, sc.image[i], clones)
		defer func() { _ = s.Kill(context.WithoutCancel(ctx), made...) }() // the server's end ends them too
		if err != nil {
			return err
		}
		for _, at := range []*sample{&early[i], &late[i]} {
			now, err := s.Memory()
			if err != nil {
				return err
			}
			at.addBytes((now - before) / clones)
			if at == &late[i] {
				break
			}
			if err := settled(ctx, s); err != nil {
				return err
			}
		}
		return sameMemory(ctx, s, append(made, sc.box[i]))
	})
	b.add(sc, "MiB", "memory per spawn, just answered", early)
	b.add(sc, "MiB", "memory per spawn, all loaded", late)
	return err
}

// sameMemory checks that the guest programs hold the same bytes: numbers of
// sandboxes that do not work are worth nothing.
func sameMemory(ctx context.Context, s subject, boxes []box) error {
	var want string
	for _, b := range boxes {
		sum, err := s.Ask(ctx, b, "sum")
		if err != nil {
			return err
		}
		if want == "" {
			want = sum
		}
		if sum != want {
			return fmt.Errorf("the memory of %s is not its checkpoint's", b)
		}
	}
	return nil
}

// Bounds of settled.
const (
	settleStep  = 250 * time.Millisecond
	settleBytes = 1 << 20
	settleCalm  = 4 // steps
	settleMost  = 2 * time.Minute
)

// settled waits until a side's memory grows no more: its sandboxes are loaded.
func settled(ctx context.Context, s subject) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleMost, errors.New("the sandboxes do not stop loading"))
	defer cancel()
	last, calm := int64(0), 0
	for calm < settleCalm {
		now, err := s.Memory()
		if err != nil {
			return err
		}
		if now > last+settleBytes {
			calm, last = 0, now
		} else {
			calm++
		}
		if err := sleep(ctx, settleStep); err != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// enoughMemory refuses what would end in the kernel's hands: the bare engine
// loads every copy fully.
func enoughMemory(w workload, n int) error {
	have, err := availableMemory()
	if err != nil {
		return err
	}
	if need := int64(n) * w.bytes(); need > have-have/10 {
		return fmt.Errorf("%d sandboxes of %s need %d MiB, %d MiB are available", n, w.name, need>>20, have>>20)
	}
	return nil
}
