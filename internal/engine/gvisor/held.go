// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// held implements engine.Held: the helper that captured and paused the engine
// waits for one command, and a watchdog sees that the engine does not stay
// paused when that helper hangs and this server is gone.
type held struct {
	d        *Driver
	p        engine.Process
	helper   *dialog
	watchdog *dialog       // nil: there is none
	mark     *os.File      // where the helper notes that the engine is paused
	patience time.Duration // for the end of a helper that may have frozen the engine
}

// CaptureHeld implements engine.Driver.
func (d *Driver) CaptureHeld(ctx context.Context, p engine.Process, opts engine.CaptureOptions, limit time.Duration) (_ *engine.Capture, _ engine.Held, err error) {
	a, err := d.newArena(p, opts)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	req, extra, err := d.captureRequest(p, opts)
	if err != nil {
		return nil, nil, err
	}
	// Not bound to a context: killed, it would leave the engine paused.
	helper, err := d.helpers.get(p.Build, wire.VerbCapture, slices.Concat(a.files, extra)...)
	extra[1:].close()
	mark := extra[0]
	if err != nil {
		return nil, nil, errors.Join(err, mark.Close())
	}
	h := &held{d: d, p: p, helper: newDialog(helper), mark: mark}
	ev, err := h.freeze(ctx, req, stagesOf(p, a, opts), limit)
	if e := d.limitCPUs(p.Generation); err == nil {
		err = e
	}
	var capt *engine.Capture
	if err == nil {
		capt, err = a.captured(ev.Sizes)
	}
	if err != nil {
		return nil, nil, errors.Join(err, h.giveUp(ctx, h.patience))
	}
	d.report(p, a, capt)
	return capt, h, nil
}

// freeze has the helper capture the engine and leave it paused, for limit at most.
func (h *held) freeze(ctx context.Context, req wire.Request, st stages, limit time.Duration) (ev wire.Event, err error) {
	req.HoldMS = limit.Milliseconds()
	most := st.freeze
	var line any = wire.Command{Do: wire.Freeze}
	if h.p.Build == h.d.build {
		req.Ask = true
		if ev, err = h.helper.exchange(ctx, st.ready, req); errors.Is(err, errCaptureDeadline) {
			err = errReadyDeadline
		}
		if err != nil || ev.Event != wire.EventReady {
			return ev, err
		}
	} else { // may not know how to ask
		most += st.ready
		line = req
	}
	h.watch(ctx, limit+most, most)
	if err := st.before(); err != nil {
		return ev, err
	}
	h.patience = most // killed earlier, it would leave the engine paused
	return h.helper.exchange(ctx, most, line)
}

// watch starts the watchdog. A build that has none does without.
func (h *held) watch(ctx context.Context, limit, patience time.Duration) {
	start, err := proc.StartTime(h.helper.cmd.Process.Pid)
	var dog *helperProc
	if err == nil {
		dog, err = h.d.helpers.get(h.p.Build, wire.VerbWatch, h.mark)
	}
	if err == nil {
		w := newDialog(dog)
		_, err = w.exchange(ctx, commandTime, wire.Request{
			Version: wire.Version, Verb: wire.VerbWatch, Targets: []wire.Target{target(h.p)},
			Watch: &wire.Watch{
				PID: h.helper.cmd.Process.Pid, StartTime: start,
				LimitMS: (limit + commandTime).Milliseconds(), PatienceMS: patience.Milliseconds(),
			},
		})
		if err == nil {
			h.watchdog = w
			return
		}
		w.end()
	}
	h.d.cfg.Log.Warn("no watchdog beside a capture", "generation", h.p.Generation, "error", err)
}

// dismiss ends the watchdog: from here on only this server acts.
func (h *held) dismiss(ctx context.Context) {
	if h.watchdog == nil {
		return
	}
	if _, err := h.watchdog.exchange(ctx, commandTime, wire.Command{ID: 1, Do: wire.Release}); err != nil {
		_ = h.watchdog.cmd.Process.Kill() // gone already is as good
	}
	<-h.watchdog.end()
	h.watchdog = nil
}

// Thaw implements engine.Held.
func (h *held) Thaw(ctx context.Context) error {
	if err := h.command(ctx, wire.VerbResume); err != nil {
		return errors.Join(err, h.giveUp(ctx, commandTime))
	}
	return nil
}

// Keep implements engine.Held. After an error the helper is dead, so that it
// cannot let the generation go on.
func (h *held) Keep(ctx context.Context) error {
	err := h.command(ctx, wire.Keep)
	if err != nil {
		_ = h.helper.cmd.Process.Kill() // gone already is as good
		<-h.helper.end()
		err = errors.Join(err, h.mark.Close())
	}
	return err
}

// commandTime bounds a short call to an engine.
const commandTime = 20 * time.Second

// command tells the helper what to do; when it has done it, it is over.
func (h *held) command(ctx context.Context, do string) error {
	h.dismiss(ctx)
	if _, err := h.helper.exchange(ctx, commandTime, wire.Command{ID: 1, Do: do}); err != nil {
		return err
	}
	h.helper.end()
	return h.mark.Close()
}

// giveUp sees that the engine runs: the helper lets it go on when nobody is left
// to tell it what to do; one that does not end within the time is killed.
func (h *held) giveUp(ctx context.Context, patience time.Duration) error {
	ctx = context.WithoutCancel(ctx)
	h.dismiss(ctx)
	ended := h.helper.end()
	select {
	case <-ended:
	case <-time.After(patience):
		_ = h.helper.cmd.Process.Kill() // gone already is as good
		<-ended
	}
	defer h.mark.Close()
	return h.d.release(ctx, h.p, h.mark)
}

// release lets an engine go on that a mark says is paused, once: while the mark says
// so, a helper that died had not begun to.
func (d *Driver) release(ctx context.Context, p engine.Process, mark *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	for {
		paused, err := wire.IsPaused(mark)
		if err != nil || !paused {
			return err
		}
		if p.Build != d.build { // may not know marks
			return errors.Join(wire.MarkPaused(mark, false), d.Resume(ctx, p))
		}
		_, err = d.call(ctx, p.Build, wire.Request{Verb: wire.VerbResume, Targets: []wire.Target{target(p)}, Marked: true}, mark)
		if err == nil || ctx.Err() != nil || !d.Alive(p) {
			return err
		}
		if paused, e := wire.IsPaused(mark); e != nil || !paused {
			return errors.Join(err, e)
		}
		d.cfg.Log.Warn("letting an engine go on that is paused; trying again", "generation", p.Generation, "error", err)
	}
}

// dialog is a helper that is told several things, one after the other.
type dialog struct {
	*helperProc
	dec *json.Decoder
}

func newDialog(h *helperProc) *dialog { return &dialog{helperProc: h, dec: json.NewDecoder(h.stdout)} }

// exchange sends a line and waits for one event. A helper that takes too long
// is killed.
func (h *dialog) exchange(ctx context.Context, limit time.Duration, line any) (wire.Event, error) {
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
		} else {
			a.err = fmt.Errorf("engine: the helper ended without an answer: %w", a.err)
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

// end takes leave of the helper; the channel is closed when it has ended.
func (h *dialog) end() <-chan struct{} {
	_ = h.stdin.Close() // which ends it
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.wait()
	}()
	return ended
}
