// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// bench holds both sides and what was measured so far. Runs alternate between
// the sides, so that whatever else the machine does falls on both.
type bench struct {
	opts     options
	ours     *ours
	bare     *bare
	dir      string
	archive  []byte // the root file system
	rows     []row
	promises []promise
	stored   []stored  // of series of checkpoints
	say      io.Writer // progress
	failed   error     // measures that could not be taken, joined
}

// sides are ours and the bare engine's, in the order of a run.
func (b *bench) sides() [2]subject { return [2]subject{b.ours, b.bare} }

// scene is one workload, on both sides: a sandbox and a checkpoint of it.
type scene struct {
	load  workload
	box   [2]box
	image [2]image
}

// measure is one kind of measurement; it adds rows.
type measure struct {
	name     string
	workload string // the only one that it is measured with; "" = each
	function func(*bench, context.Context, *scene) error
}

// measures are all there are, in the order of the table.
func measures() []measure {
	return []measure{
		{"create", idle.name, (*bench).create},
		{"exec", idle.name, (*bench).exec},
		{"checkpoint", "", (*bench).checkpoint},
		{"restore", "", (*bench).restore},
		{"spawn", "", (*bench).spawn},
		{"spawn16", "", (*bench).spawnMany},
		{"memory", "", (*bench).memory},
		{"spawn100", small.name, (*bench).spawnHundred},
		{"second", large.name, (*bench).second},
		{"fork", large.name, (*bench).fork},
		{"chain", medium.name, (*bench).chain},
		{"far", large.name, (*bench).far},
		{"server", large.name, (*bench).serverMemory},
		{"delete", large.name, (*bench).deletion},
		{dedup, idle.name, (*bench).series},
	}
}

// run takes all measures of all workloads. A measure that fails is reported at
// the end and does not keep the others from being taken.
func (b *bench) run(ctx context.Context) error {
	for _, w := range b.opts.workloads {
		if err := b.runWorkload(ctx, w); err != nil {
			return err
		}
	}
	return b.failed
}

func (b *bench) runWorkload(ctx context.Context, w workload) (err error) {
	sc := &scene{load: w}
	defer func() { err = errors.Join(err, b.clear(context.WithoutCancel(ctx), sc)) }()
	for _, m := range measures() {
		if !b.opts.wants(m.name) || m.workload != "" && m.workload != w.name {
			continue
		}
		start := time.Now()
		err := m.function(b, ctx, sc)
		fmt.Fprintf(b.say, "%-12s %-10s %5.1f s", w.name, m.name, time.Since(start).Seconds())
		if ctx.Err() != nil {
			fmt.Fprintln(b.say)
			return context.Cause(ctx)
		}
		if err != nil {
			fmt.Fprintf(b.say, "  %v", err)
			b.failed = errors.Join(b.failed, fmt.Errorf("%s, %s: %w", w.name, m.name, err))
		}
		fmt.Fprintln(b.say)
	}
	return nil
}

// add puts a row into the table.
func (b *bench) add(sc *scene, unit, name string, s [2]sample) {
	b.rows = append(b.rows, row{measure: name, unit: unit, workload: sc.load.name, ours: s[0], bare: s[1]})
}

// own calls f with a server of its own on a fresh store.
func (b *bench) own(ctx context.Context, with settings, f func(*ours) error) (err error) {
	dir := filepath.Join(b.dir, "own")
	o, err := newOurs(ctx, b.opts.binary, dir, b.archive, with)
	if err != nil {
		return err
	}
	defer func() {
		complaints := o.server.log()
		if err = errors.Join(err, o.server.stop(), o.server.out.Close(), os.RemoveAll(dir)); err != nil {
			err = fmt.Errorf("%w; the server: %s", err, complaints)
		}
	}()
	return f(o)
}

// few is how often what takes long is repeated.
func (b *bench) few() int { return max(1, b.opts.runs/3) }

// each calls f for the runs, for one side after the other, on a disk that is
// not busy with what came before.
func (b *bench) each(ctx context.Context, runs int, f func(side int, s subject) error) error {
	return alternate(ctx, runs, b.sides(), f)
}

func alternate(ctx context.Context, runs int, sides [2]subject, f func(side int, s subject) error) error {
	for range runs {
		for i, s := range sides {
			if err := ctx.Err(); err != nil {
				return err
			}
			unix.Sync()
			if err := f(i, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare gives the scene a sandbox and a checkpoint on both sides, where an
// earlier measure left none.
func (b *bench) prepare(ctx context.Context, sc *scene) error {
	for i, s := range b.sides() {
		var err error
		if sc.box[i] == "" {
			if sc.box[i], err = newBox(ctx, s, sc.load); err != nil {
				return err
			}
		}
		if sc.image[i].id == "" {
			if sc.image[i], err = s.Checkpoint(ctx, sc.box[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// clear ends what the scene holds.
func (b *bench) clear(ctx context.Context, sc *scene) error {
	var errs []error
	for i, s := range b.sides() {
		if sc.box[i] != "" {
			errs = append(errs, s.Kill(ctx, sc.box[i]))
		}
	}
	return errors.Join(append(errs, b.forget(ctx, sc))...)
}
