// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// watch is the watchdog beside a capture that holds its engine: it outlives the
// server, and sees that the engine goes on when the helper that froze it hangs
// or dies and nobody else is there. Resuming an engine that is not paused would
// end it, so it acts only on what the helper has written down (wire.MarkPaused),
// after that helper is gone. Only its server dismisses it: the next one, which ends
// other helpers by signals, must not leave the engine paused.
func watch(in *bufio.Reader, out *events, req wire.Request) error {
	ignoreHangups()
	t, w := req.Targets[0], req.Watch
	if w == nil {
		return errors.New("helper: watch without its parameters")
	}
	mark := os.NewFile(wire.FDWatchMark, "mark")
	exited, err := proc.Exited(context.Background(), w.PID, w.StartTime)
	if err != nil {
		return err
	}
	told, alone := make(chan wire.Command, 1), make(chan struct{})
	go func() {
		cmd, err := readLine[wire.Command](in)
		if err != nil {
			close(alone)
			return
		}
		told <- cmd
	}()
	out.send(wire.Event{Event: wire.EventRunning})
	select {
	case cmd := <-told:
		out.done(wire.Event{Command: cmd.ID})
		return nil
	case <-alone:
		select {
		case <-exited:
		case <-time.After(time.Duration(w.PatienceMS) * time.Millisecond):
		}
	case <-time.After(time.Duration(w.LimitMS) * time.Millisecond):
	}
	return takeOver(t, w, mark, exited)
}

// takeOver ends the watched helper and lets the engine go on if that left it
// paused.
func takeOver(t wire.Target, w *wire.Watch, mark *os.File, exited <-chan struct{}) error {
	if proc.Alive(w.PID, w.StartTime) {
		_ = unix.Kill(w.PID, unix.SIGKILL) // gone is as good
	}
	<-exited
	if err := (paused{t, mark}).release(); err != nil {
		return fmt.Errorf("helper: the watchdog: %w", err)
	}
	return nil
}
