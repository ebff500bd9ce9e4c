// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// inARow is how many checkpoints are made one after the other.
	inARow = 10
	// memoryStep is the time between two looks at the server's memory.
	memoryStep = 20 * time.Millisecond
	// idleAfter is when a server that has nothing to do is idle.
	idleAfter = 15 * time.Second
	// givenBack bounds the wait for the arena, and arenaRest is what may be left.
	givenBack = time.Minute
	arenaRest = 1 << 20
)

// serverMemory: what the server process takes while checkpoints are made of which
// every page is new, without the memory that captured pages are in; how long
// after the last one that memory is given back; and what an idle server takes.
func (b *bench) serverMemory(ctx context.Context, sc *scene) error {
	return b.own(ctx, settings{}, func(o *ours) error {
		pid := o.server.cmd.Process.Pid
		var peak, back, rest sample
		most, err := watchMemory(ctx, pid, func() error { return captureAnew(ctx, o, sc.load) })
		if err != nil {
			return err
		}
		peak.addBytes(most)
		d, err := timed(func() error { return arenaGivenBack(ctx, pid) })
		if err != nil {
			return err
		}
		back = append(back, d.Seconds())
		if err := sleep(ctx, idleAfter); err != nil {
			return err
		}
		n, err := ownMemory(pid)
		rest.addBytes(n)
		b.promises = append(b.promises,
			promise{measure: fmt.Sprintf("%s: server's memory, the most in %d checkpoints", sc.load.name, inARow), unit: "MiB", ours: peak, wanted: "< 300 MB"},
			promise{measure: "– until the captured pages are given back", unit: "s", ours: back, wanted: "≤ 10"},
			promise{measure: "– when it is idle again", unit: "MiB", ours: rest, wanted: "< 150 MB"})
		return err
	})
}

// captureAnew makes checkpoints of a sandbox whose memory is new each time, and
// removes all but the last.
func captureAnew(ctx context.Context, o *ours, w workload) error {
	b, err := newBox(ctx, o, w)
	if err != nil {
		return err
	}
	var last image
	for range inARow {
		if _, err := o.Ask(ctx, b, "change", "100"); err != nil {
			return err
		}
		img, err := o.Checkpoint(ctx, b)
		if err != nil {
			return err
		}
		if last.id != "" {
			if err := o.Forget(ctx, last); err != nil {
				return err
			}
		}
		last = img
	}
	return nil
}

// watchMemory gives the most memory that a process had while f ran.
func watchMemory(ctx context.Context, pid int, f func() error) (most int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan error, 1)
	go func() {
		for {
			n, err := ownMemory(pid)
			most = max(most, n)
			if err != nil || sleep(ctx, memoryStep) != nil {
				watched <- err
				return
			}
		}
	}()
	err = f()
	cancel()
	err = errors.Join(err, <-watched)
	return most, err
}

// ownMemory is what a process has in memory without what it shares: RssAnon and
// RssFile of proc_pid_status(5).
func ownMemory(pid int) (total int64, err error) {
	file := fmt.Sprintf("/proc/%d/status", pid)
	for _, name := range []string{"RssAnon", "RssFile"} {
		var kib int64
		value, ok := field(file, name)
		if _, err := fmt.Sscanf(value, "%d kB", &kib); !ok || err != nil {
			return 0, fmt.Errorf("memory of process %d: %s is %q in %s", pid, name, value, file)
		}
		total += kib << 10
	}
	return total, nil
}

// arenaGivenBack waits until a server has no memory files any more.
func arenaGivenBack(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, givenBack, errors.New("the server does not give back the memory of captures"))
	defer cancel()
	for {
		files := map[uint64]int64{}
		if err := memoryFiles(pid, files); err != nil {
			return err
		}
		var held int64
		for _, n := range files {
			held += n
		}
		if held <= arenaRest {
			return nil
		}
		if err := sleep(ctx, memoryStep); err != nil {
			return context.Cause(ctx)
		}
	}
}
