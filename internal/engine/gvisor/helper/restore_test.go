// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"testing"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// Why a target is ended stays in its directory; of one that somebody else has ended
// nothing comes to be there, because it is being removed.
func TestLose(t *testing.T) {
	t.Parallel()
	c := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	start, err := proc.StartTime(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	target := func() wire.Target {
		return wire.Target{Generation: "gn-1", Dir: t.TempDir(), PID: c.Process.Pid, StartTime: start}
	}
	r := &restoring{out: &events{w: json.NewEncoder(io.Discard)}, req: wire.Request{Targets: []wire.Target{target(), target()}}}
	why := errors.New("a segment does not match its hash")
	r.lose(0, why)
	if err := c.Wait(); err == nil {
		t.Error("the target was not ended")
	}
	r.lose(1, why)
	if err := wire.Loss(r.req.Targets[0].Dir); err == nil || err.Error() != why.Error() {
		t.Errorf("the target that was ended: %v", err)
	}
	if err := wire.Loss(r.req.Targets[1].Dir); err != nil {
		t.Errorf("the one that had ended: %v", err)
	}
}
