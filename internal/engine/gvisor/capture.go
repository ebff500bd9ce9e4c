// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/engine/pageset"
)

// Bounds of an arena's files. They are sparse: a bound costs nothing.
const (
	maxState  = 4 << 30
	maxRanges = 1 << 30
	// pagesSlack covers what the guest adds between measuring and freezing.
	pagesSlack = 64 << 30
)

// arena is the files that a capture is copied to, in the order of their
// descriptors in the helper.
type arena struct {
	files    []*os.File // state, meta, pages, ranges
	estimate int64      // bytes of pages, if all are copied
	missing  int64      // of them, what is still to be loaded
	onDisk   bool       // the pages
}

func (a *arena) close() {
	for _, f := range a.files {
		_ = f.Close() // memory, or an unlinked file
	}
}

// newArena makes room for a capture. A state larger than budget gets a file on
// the data disk instead of memory; its pause is longer.
func (d *Driver) newArena(p engine.Process, opts engine.CaptureOptions) (_ *arena, err error) {
	mem, dsk := d.Usage(p)
	a := &arena{estimate: max(mem+dsk, opts.Bytes)}
	a.missing = a.estimate - (mem + dsk)
	a.onDisk = a.estimate > opts.Budget
	for _, open := range []func() (*os.File, error){
		func() (*os.File, error) { return memfd("state", maxState) },
		func() (*os.File, error) { return memfd("meta", maxState) },
		func() (*os.File, error) { return d.pagesFile(a, opts.Base != nil) },
		func() (*os.File, error) { return memfd("ranges", maxRanges) },
	} {
		f, err := open()
		if err != nil {
			a.close()
			return nil, err
		}
		a.files = append(a.files, f)
	}
	return a, nil
}

// captured makes a capture of what the helper reported.
func (a *arena) captured(sz wire.Sizes) (*engine.Capture, error) {
	if min(sz.State, sz.Meta, sz.Pages, sz.Ranges) < 0 || sz.Ranges > maxRanges {
		return nil, fmt.Errorf("engine: the helper reports impossible sizes %+v", sz)
	}
	table := make([]byte, sz.Ranges)
	if _, err := a.files[3].ReadAt(table, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("engine: reading page identities: %w", err)
	}
	ranges, copied, err := pageset.DecodeTable(table, sz.Pages)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	c := &engine.Capture{
		State: a.files[0], StateSize: sz.State,
		Meta: a.files[1], MetaSize: sz.Meta,
		Pages: a.files[2], PagesSize: sz.Pages,
		Ranges: ranges, Copied: copied, Pause: time.Duration(sz.PauseNS), Close: a.close,
	}
	if copied != nil && sz.Copied != c.CopiedBytes() {
		return nil, fmt.Errorf("engine: the helper says that it copied %d bytes, and lists %d", sz.Copied, c.CopiedBytes())
	}
	// What was made room for and not used goes back now, not when all is stored.
	if err := a.files[2].Truncate(c.CopiedBytes()); err != nil {
		return nil, fmt.Errorf("engine: arena: %w", err)
	}
	return c, nil
}

// report logs a capture, with a warning where its pause was longer than it had
// to be.
func (d *Driver) report(p engine.Process, a *arena, c *engine.Capture) {
	log := d.cfg.Log.With("generation", p.Generation, "bytes", c.PagesSize, "copied", c.CopiedBytes(), "pause", c.Pause)
	if a.onDisk {
		log.Warn("captured through a file on disk: the sandbox was larger than the memory for it, so it paused for longer")
		return
	}
	log.Debug("captured")
}

// Capture implements engine.Driver.
func (d *Driver) Capture(ctx context.Context, p engine.Process, opts engine.CaptureOptions) (_ *engine.Capture, err error) {
	a, err := d.newArena(p, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	req, extra, err := d.captureRequest(p, opts)
	if err != nil {
		return nil, err
	}
	defer extra.close()
	ev, err := d.capture(ctx, p, req, stagesOf(p, a, opts), slices.Concat(a.files, extra))
	if e := d.limitCPUs(p.Generation); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	c, err := a.captured(ev.Sizes)
	if err == nil {
		d.report(p, a, c)
		d.spare.want(spareFactor * c.CopiedBytes())
	}
	return c, err
}

// capture has a helper capture a generation: that which captured it before, or a
// new one. Of our own build it stays for the next time.
func (d *Driver) capture(ctx context.Context, p engine.Process, req wire.Request, st stages, files []*os.File) (ev wire.Event, err error) {
	if p.Build != d.build { // may not know how to stay, nor how to ask
		if err := st.before(); err != nil {
			return ev, err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, st.ready+st.freeze, errCaptureDeadline)
		defer cancel()
		ev, end, err := d.ask(ctx, p.Build, req, files...)
		d.ending.Go(end)
		return ev, err
	}
	for len(files) < wire.FDNext-wire.FDFirst {
		files = append(files, files[len(files)-1]) // the place of a base that is not there
	}
	req.Stay, req.Ask = true, true
	ctx, ready, cancel := st.bound(ctx)
	defer cancel()
	if h := d.stayers.take(p.Generation); h != nil {
		if ev, err = d.captureBy(ctx, p, h, req, ready, files); !errors.Is(err, errNotBegun) {
			return ev, err
		}
	}
	return d.captureBy(ctx, p, nil, req, ready, files)
}

// captureBy has a helper capture a generation and stay: one that stayed before,
// which errNotBegun says did nothing, or for nil a new one.
func (d *Driver) captureBy(ctx context.Context, p engine.Process, h *helperProc, req wire.Request, ready func() error, files []*os.File) (ev wire.Event, err error) {
	if err := ctx.Err(); err != nil {
		return ev, fmt.Errorf("engine: %s: %w", req.Verb, context.Cause(ctx))
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return ev, err
	}
	defer theirs.Close() // it has it by then
	files = append(slices.Clone(files), theirs)
	if h == nil {
		h, err = d.helpers.get(d.build, wire.VerbCapture, files...)
	} else if h.stayed = true; h.assign(wire.VerbCapture, files) != nil {
		d.stayers.dismiss(h)
		err = errNotBegun
	}
	if err != nil {
		return ev, errors.Join(err, ours.Close())
	}
	h.handoff = ours
	ev, end, err := d.converse(ctx, h, req, ready)
	if end != nil {
		_ = ours.Close() // the end of its wait
		d.ending.Go(end)
		return ev, err
	}
	d.stayers.put(p.Generation, h)
	if !d.Alive(p) { // destroyed meanwhile: its memory must not stay mapped
		d.stayers.drop(p.Generation)
	}
	return ev, nil
}

// extraFiles are the descriptors of a capture that follow the arena's: the mark,
// and the base if there is one. They may be closed when the helper has them.
type extraFiles []*os.File

func (x extraFiles) close() {
	for _, f := range x {
		_ = f.Close() // memory
	}
}

// captureRequest asks for a capture, with the engine's CPU time not limited.
func (d *Driver) captureRequest(p engine.Process, opts engine.CaptureOptions) (_ wire.Request, _ extraFiles, err error) {
	free := d.groups.CPUs(p.Generation, 0)
	req := wire.Request{Version: wire.Version, Verb: wire.VerbCapture, Targets: []wire.Target{target(p)}, Frozen: &free}
	mark, err := wire.NewMark(p)
	if err != nil {
		return req, nil, err
	}
	extra := extraFiles{mark}
	if opts.Base == nil {
		return req, extra, nil
	}
	defer func() {
		if err != nil {
			extra.close()
		}
	}()
	if err := pageset.CheckBase(opts.Base); err != nil {
		return req, nil, fmt.Errorf("engine: the base of a capture: %w", err)
	}
	base, err := memfd("base", 0)
	if err != nil {
		return req, nil, err
	}
	extra = append(extra, base)
	if _, err := base.WriteAt(pageset.EncodeBase(opts.Base), 0); err != nil { // its offset stays at the beginning
		return req, nil, fmt.Errorf("engine: the base of a capture: %w", err)
	}
	req.Base, req.Expect = true, opts.Expect
	return req, extra, nil
}

// pagesFile makes the file of an arena's pages: of memory, which is there already where
// few of them are expected and the last capture left some, or unlinked on the data disk
// with room for the estimate.
func (d *Driver) pagesFile(a *arena, few bool) (*os.File, error) {
	size := a.estimate + pagesSlack
	if !a.onDisk {
		if f := d.spare.take(few); f != nil {
			return grown(f, size)
		}
		return memfd("pages", size)
	}
	f, err := os.CreateTemp(d.cfg.DiskDir, "capture-")
	if err != nil {
		return nil, fmt.Errorf("engine: arena: %w", err)
	}
	err = errors.Join(os.Remove(filepath.Clean(f.Name())), f.Truncate(size), unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, a.estimate))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("engine: arena on disk: %w", err), f.Close())
	}
	return f, nil
}

// memfd makes a file of memory, of a size that costs nothing until it is used.
func memfd(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("oc-capture-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("engine: arena: %w", err)
	}
	return grown(os.NewFile(uintptr(fd), name), size)
}

// grown gives a file a size, or closes it.
func grown(f *os.File, size int64) (*os.File, error) {
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: arena: %w", err), f.Close())
	}
	return f, nil
}
