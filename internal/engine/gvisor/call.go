// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// eventLimit bounds a helper's one event, in bytes.
const eventLimit = 1 << 20

// callTime is Driver.callTime. What takes a tenth of a second may take many times
// that on a busy machine; what takes longer than this hangs.
const callTime = time.Minute

// call runs a helper to its end and gives its one event. When ctx ends first, or the
// time of a call, the helper is told to end, and soon killed, which leaves the engine
// running.
func (d *Driver) call(ctx context.Context, build string, req wire.Request, files ...*os.File) (wire.Event, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.callTime, fmt.Errorf("it hangs: no answer within %v", d.callTime))
	defer cancel()
	ev, end, err := d.ask(ctx, build, req, files...)
	end()
	return ev, err
}

// ask is call, but does not wait for the end of a helper that has answered: one
// that had much memory mapped takes as long for it as for a good part of its
// work. Whoever asks calls end, which waits, after an error too.
func (d *Driver) ask(ctx context.Context, build string, req wire.Request, files ...*os.File) (ev wire.Event, end func(), err error) {
	end = func() {}
	if err := ctx.Err(); err != nil {
		return ev, end, fmt.Errorf("engine: %s: %w", req.Verb, context.Cause(ctx))
	}
	h, err := d.helpers.get(build, req.Verb, files...)
	if err != nil {
		return ev, end, err
	}
	return d.converse(ctx, h, req, nil)
}

// converse is ask of a helper that is there. end is nil for one that stays: the
// request says so, and it has answered without an error. ready is what a helper waits
// for that asks, which is given up where that fails.
func (d *Driver) converse(ctx context.Context, h *helperProc, req wire.Request, ready func() error) (ev wire.Event, end func(), err error) {
	end = func() {}
	undo := h.endWith(ctx)
	req.Version = wire.Version
	sendErr := h.send(req)
	if !req.Stay && !req.Ask {
		sendErr = errors.Join(sendErr, h.stdin.Close())
	}
	dec := json.NewDecoder(io.LimitReader(h.stdout, eventLimit))
	next := func() error {
		ev = wire.Event{}
		return dec.Decode(&ev)
	}
	err = next()
	begun := ev.Event == wire.EventBegun
	if begun {
		err = next()
	}
	if err == nil && req.Ask && ev.Event == wire.EventReady {
		if err := ready(); err != nil {
			undo()
			_ = h.stdin.Close() // the end of it
			return wire.Event{}, func() { d.ended(h, req.Verb) }, err
		}
		sendErr = errors.Join(sendErr, h.send(wire.Command{Do: wire.Freeze}))
		err = next()
	}
	if err != nil {
		runErr := h.wait()
		undo()
		if ctx.Err() != nil {
			return ev, end, fmt.Errorf("engine: %s was broken off: %w", req.Verb, context.Cause(ctx))
		}
		if h.stayed && !begun {
			return ev, end, errNotBegun
		}
		return ev, end, fmt.Errorf("engine: helper %s ended without an answer: %w: %s", req.Verb, errors.Join(sendErr, err, runErr), h.stderr)
	}
	inTime := undo() // it has nothing to do any more
	if req.Stay && inTime && ev.Err() == nil {
		return ev, nil, nil
	}
	_ = h.stdin.Close() // again, mostly
	return ev, func() { d.ended(h, req.Verb) }, ev.Err()
}

// errNotBegun is that a helper which stayed has ended before it took up a request.
var errNotBegun = errors.New("engine: the helper that stayed has ended")

// ended waits for the end of a helper that has answered.
func (d *Driver) ended(h *helperProc, verb string) {
	hung := time.AfterFunc(killDelay, func() { _ = h.cmd.Process.Kill() }) // gone already is as good
	defer hung.Stop()
	_ = h.wait() // its answer said what there was to say
	if s := strings.TrimSpace(h.stderr.String()); s != "" {
		d.cfg.Log.Debug("engine helper", "verb", verb, "stderr", s)
	}
}

// limited keeps the first limit bytes written to it.
type limited struct {
	buf   bytes.Buffer
	limit int
}

func (l *limited) Write(p []byte) (int, error) {
	l.buf.Write(p[:min(len(p), l.limit-l.buf.Len())])
	return len(p), nil
}

func (l *limited) String() string { return l.buf.String() }
