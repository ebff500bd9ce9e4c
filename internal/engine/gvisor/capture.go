// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/store"
)

// Bounds of an arena's files. They are sparse: a bound costs nothing.
const (
	maxState  = 4 << 30
	maxRanges = 1 << 30
	// pagesSlack covers what the guest adds between measuring and freezing.
	pagesSlack = 64 << 30
)

// Capture implements engine.Driver. A state larger than budget is captured
// into a file on the data disk instead of memory; its pause is longer.
func (d *Driver) Capture(ctx context.Context, p engine.Process, budget int64) (_ *engine.Capture, err error) {
	mem, dsk := d.Usage(p)
	estimate := mem + dsk
	inMemory := estimate <= budget
	if !inMemory {
		d.cfg.Log.Warn("sandbox larger than the capture budget: capturing to disk, the pause will be longer",
			"generation", p.Generation, "bytes", estimate, "budget", budget)
	}
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			_ = f.Close() // memory, or an unlinked file
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	for _, r := range []struct {
		name   string
		size   int64
		memory bool
	}{{"state", maxState, true}, {"meta", maxState, true}, {"pages", estimate + pagesSlack, inMemory}, {"ranges", maxRanges, true}} {
		f, err := d.arenaFile(r.name, r.size, r.memory, estimate)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, captureDeadline(estimate), errors.New("the deadline of the capture passed"))
	defer cancel()
	ev, err := d.call(ctx, p.Build, wire.Request{Verb: wire.VerbCapture, Targets: []wire.Target{target(p)}}, files...)
	if err != nil {
		return nil, err
	}
	if sz := ev.Sizes; min(sz.State, sz.Meta, sz.Pages, sz.Ranges) < 0 || sz.Ranges > maxRanges {
		return nil, fmt.Errorf("engine: the helper reports impossible sizes %+v", sz)
	}
	ids := make([]byte, ev.Sizes.Ranges)
	if _, err := files[3].ReadAt(ids, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("engine: reading page identities: %w", err)
	}
	ranges, err := store.DecodeRanges(ids, ev.Sizes.Pages)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	return &engine.Capture{
		State: files[0], StateSize: ev.Sizes.State,
		Meta: files[1], MetaSize: ev.Sizes.Meta,
		Pages: files[2], PagesSize: ev.Sizes.Pages,
		Ranges: ranges, Pause: time.Duration(ev.Sizes.PauseNS), Close: closeAll,
	}, nil
}

// captureDeadline grows with the work.
func captureDeadline(bytes int64) time.Duration {
	return 20*time.Second + time.Duration(bytes>>30)*10*time.Second
}

// arenaFile makes one file of an arena, of memory or unlinked on the data disk
// with room for the estimate.
func (d *Driver) arenaFile(name string, size int64, memory bool, estimate int64) (*os.File, error) {
	if memory {
		fd, err := unix.MemfdCreate("oc-capture-"+name, unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("engine: arena: %w", err)
		}
		f := os.NewFile(uintptr(fd), name)
		if err := f.Truncate(size); err != nil {
			return nil, errors.Join(fmt.Errorf("engine: arena: %w", err), f.Close())
		}
		return f, nil
	}
	f, err := os.CreateTemp(d.cfg.DiskDir, "capture-")
	if err != nil {
		return nil, fmt.Errorf("engine: arena: %w", err)
	}
	err = errors.Join(os.Remove(filepath.Clean(f.Name())), f.Truncate(size), unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, estimate))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("engine: arena on disk: %w", err), f.Close())
	}
	return f, nil
}
