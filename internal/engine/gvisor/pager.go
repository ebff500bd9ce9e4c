// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// features remembers what the helpers of other builds can do, by build. A kept
// build never changes, so each is asked once.
type features struct {
	mu    sync.Mutex
	known map[string][]string
}

func (f *features) get(build string) (can []string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	can, ok = f.known[build]
	return can, ok
}

func (f *features) put(build string, can []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		f.known = map[string][]string{}
	}
	f.known[build] = can
}

// linked tells whether a restore by a build is done by a pair: where that build
// is ours one process does it all, and the first builds know no other way.
func (d *Driver) linked(ctx context.Context, build string) (bool, error) {
	if build == d.build {
		return false, nil
	}
	can, ok := d.features.get(build)
	if !ok {
		ev, err := d.call(ctx, build, wire.Request{Verb: wire.VerbFeatures})
		if err != nil && ev.Event != wire.EventDone {
			return false, err
		}
		can = ev.Features // none where it does not understand the question
		d.features.put(build, can)
	}
	return slices.Contains(can, wire.FeatureLinked), nil
}

// reader gives the build that restores from the store what a build wrote: another
// one than that where it knows neither the store's present format nor a pager.
// ok is false where there is none.
func (d *Driver) reader(ctx context.Context, build, stamp string) (_ string, ok bool, err error) {
	if build == d.build {
		return build, true, nil
	}
	linked, err := d.linked(ctx, build)
	if err != nil || linked {
		return build, linked, err
	}
	return d.build, stamp == d.need.Engine, nil
}

// ReadsStore implements engine.Driver.
func (d *Driver) ReadsStore(ctx context.Context, build, stamp string) (bool, error) {
	build, err := d.buildFor(build, stamp)
	if err != nil {
		return false, err
	}
	_, ok, err := d.reader(ctx, build, stamp)
	return ok, err
}

// pageSource is a pager of our own build beside a helper of another.
type pageSource struct {
	*helperProc
	ended chan struct{} // closed when it is gone from the process table
}

// startPager starts a pager of an image. It ends by itself when end, the
// connection's other one, is closed everywhere.
func (d *Driver) startPager(src engine.Source) (p *pageSource, end *os.File, err error) {
	ours, end, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer ours.Close() // it has it by then
	// Not bound to a context: like the helper it outlives this server.
	h, err := d.helpers.get(d.build, wire.VerbPager, append([]*os.File{ours}, src.Files...)...)
	if err != nil {
		return nil, nil, errors.Join(err, end.Close())
	}
	p = &pageSource{helperProc: h, ended: make(chan struct{})}
	go d.follow(p)
	err = errors.Join(h.send(wire.Request{Version: wire.Version, Verb: wire.VerbPager, Image: src.Location, Files: len(src.Files)}), h.stdin.Close())
	if err != nil {
		p.unwanted()
		return nil, nil, errors.Join(err, end.Close())
	}
	return p, end, nil
}

// follow waits for a pager's end. Why it failed its helper tells as well, in
// general: this is for the log.
func (d *Driver) follow(p *pageSource) {
	defer close(p.ended)
	out, _ := io.ReadAll(io.LimitReader(p.stdout, eventLimit)) // what there is
	runErr := p.wait()
	var ev wire.Event
	if len(out) > 0 {
		runErr = errors.Join(json.Unmarshal(out, &ev), ev.Err())
	}
	if runErr != nil {
		d.cfg.Log.Warn("a pager failed", "error", runErr, "stderr", p.stderr.String())
	}
}

// unwanted says that the helper is gone: the pager, which sees it too, is killed
// if it takes too long to end. A nil source has none.
func (p *pageSource) unwanted() {
	if p == nil {
		return
	}
	select {
	case <-p.ended:
	case <-time.After(killDelay):
		_ = p.cmd.Process.Kill() // gone already is as good
	}
}
