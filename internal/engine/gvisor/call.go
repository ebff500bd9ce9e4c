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

	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// eventLimit bounds a helper's one event, in bytes.
const eventLimit = 1 << 20

// call runs a helper to its end and gives its one event. When ctx ends first
// the helper is told to end, and soon killed, which leaves the engine running.
func (d *Driver) call(ctx context.Context, build string, req wire.Request, files ...*os.File) (ev wire.Event, err error) {
	if err := ctx.Err(); err != nil {
		return ev, fmt.Errorf("engine: %s: %w", req.Verb, context.Cause(ctx))
	}
	h, err := d.helpers.get(build, req.Verb, files...)
	if err != nil {
		return ev, err
	}
	defer h.endWith(ctx)()
	req.Version = wire.Version
	sendErr := errors.Join(h.send(req), h.stdin.Close())
	out, readErr := io.ReadAll(io.LimitReader(h.stdout, eventLimit))
	runErr := h.wait()
	if err := json.Unmarshal(out, &ev); err != nil {
		if ctx.Err() != nil {
			return ev, fmt.Errorf("engine: %s was broken off: %w", req.Verb, context.Cause(ctx))
		}
		return ev, fmt.Errorf("engine: helper %s ended without an answer: %w: %s", req.Verb, errors.Join(sendErr, readErr, runErr, err), h.stderr)
	}
	if err := ev.Err(); err != nil {
		return ev, err
	}
	if s := strings.TrimSpace(h.stderr.String()); s != "" {
		d.cfg.Log.Debug("engine helper", "verb", req.Verb, "stderr", s)
	}
	return ev, nil
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
