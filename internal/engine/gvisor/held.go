// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// held implements engine.Held: the helper that captured and paused the engine
// waits for one command.
type held struct {
	*helperProc
	dec *json.Decoder
}

// CaptureHeld implements engine.Driver.
func (d *Driver) CaptureHeld(ctx context.Context, p engine.Process, budget int64, limit time.Duration) (_ *engine.Capture, _ engine.Held, err error) {
	a, err := d.newArena(p, budget)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	// Not bound to a context: killed, it would leave the engine paused.
	helper, err := d.helpers.get(p.Build, wire.VerbCapture, a.files...)
	if err != nil {
		return nil, nil, err
	}
	h := &held{helperProc: helper, dec: json.NewDecoder(helper.stdout)}
	req := d.captureRequest(p)
	req.HoldMS = limit.Milliseconds()
	ev, err := h.exchange(ctx, captureDeadline(a.estimate), req)
	if e := d.limitCPUs(p.Generation); err == nil {
		err = e
	}
	var capt *engine.Capture
	if err == nil {
		capt, err = a.captured(ev.Sizes)
	}
	if err != nil {
		h.end() // it resumes the engine when nobody is left to tell it
		return nil, nil, err
	}
	return capt, h, nil
}

// Thaw implements engine.Held.
func (h *held) Thaw(ctx context.Context) error { return h.command(ctx, wire.VerbResume) }

// Keep implements engine.Held.
func (h *held) Keep(ctx context.Context) error { return h.command(ctx, wire.Keep) }

// commandTime bounds a short call to an engine.
const commandTime = 20 * time.Second

func (h *held) command(ctx context.Context, do string) error {
	_, err := h.exchange(ctx, commandTime, wire.Command{ID: 1, Do: do})
	h.end()
	return err
}

// exchange sends a line and waits for one event.
func (h *held) exchange(ctx context.Context, limit time.Duration, line any) (wire.Event, error) {
	if err := h.send(line); err != nil {
		return wire.Event{}, err
	}
	type answer struct {
		ev  wire.Event
		err error
	}
	got := make(chan answer, 1)
	go func() {
		var a answer
		if a.err = h.dec.Decode(&a.ev); a.err == nil {
			a.err = a.ev.Err()
		}
		got <- a
	}()
	select {
	case a := <-got:
		return a.ev, a.err
	case <-time.After(limit):
		return wire.Event{}, errors.Join(errCaptureDeadline, h.cmd.Process.Kill())
	case <-ctx.Done():
		return wire.Event{}, context.Cause(ctx)
	}
}

// end takes leave of the helper.
func (h *held) end() {
	_ = h.stdin.Close() // which ends it
	go func() { _ = h.wait() }()
}
