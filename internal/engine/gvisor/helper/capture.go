// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/opencomputer/oc/internal/engine/gvisor/disk"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/engine/pageset"
	"github.com/opencomputer/oc/internal/pager"
)

// capture copies a running generation's state into the arena that it was
// handed. If this process is killed the engine runs on within milliseconds,
// unless it was to be held: then it stays paused.
func capture(in *bufio.Reader, out *events, req wire.Request) error {
	t := req.Targets[0]
	arena, err := pager.NewArena(
		os.NewFile(wire.FDState, "state"), os.NewFile(wire.FDMeta, "meta"), os.NewFile(wire.FDPages, "pages"))
	if err != nil {
		return err
	}
	defer arena.Close()
	expect, err := compare(arena, req)
	if err != nil {
		return err
	}
	if req.HoldMS == 0 {
		// Nobody else would end this process then if it hung, with the engine frozen.
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) // never fails (prctl(2))
	}
	c, err := connect(t)
	if err != nil {
		return err
	}
	defer c.Close()
	// The engine would otherwise wait for the rest of its memory inside the pause.
	if err := c.Call(boot.ContMgrWaitRestore, nil, nil); err != nil && !strings.Contains(err.Error(), "is not being restored") {
		return fmt.Errorf("engine: loading before the checkpoint: %w", err)
	}
	warm(t.PID, arena)
	most := disk.MemoryUsage(t.PID) + disk.Overlay{}.Usage(t.PID)
	if expect > 0 {
		most = min(most, expect)
	}
	arena.Prefault(most)
	if req.Frozen != nil {
		if err := req.Frozen.Apply(); err != nil {
			return err
		}
	}
	if req.HoldMS == 0 {
		return copyState(c, arena, out)
	}
	ignoreHangups()
	p := paused{t: t, mark: os.NewFile(wire.FDMark, "mark")}
	if err := p.pause(); err != nil {
		return err
	}
	if err := copyState(c, arena, out); err != nil {
		return errors.Join(err, p.resume())
	}
	return p.hold(in, out, time.Duration(req.HoldMS)*time.Millisecond)
}

// compare has the arena take only what differs from the request's base, if it
// has one, and gives how much room is to be made for that; 0 for all.
func compare(arena *pager.Arena, req wire.Request) (expect int64, err error) {
	if !req.Base {
		return 0, nil
	}
	f := os.NewFile(wire.FDBase, "base")
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		return 0, fmt.Errorf("helper: reading the base of a capture: %w", err)
	}
	base, err := pageset.DecodeBase(raw)
	if err != nil {
		return 0, fmt.Errorf("helper: the base of a capture: %w", err)
	}
	arena.Compare(base)
	if req.Expect <= 0 {
		return 0, nil
	}
	const slack = 4 << 20 // and a quarter: expectations are made of what was before
	return req.Expect + req.Expect/4 + slack, nil
}

// paused is an engine that this helper pauses, and says so where others see it.
type paused struct {
	t    wire.Target
	mark *os.File
}

func (p paused) pause() error {
	if err := steerOne(wire.VerbPause, p.t); err != nil {
		return err
	}
	if err := wire.MarkPaused(p.mark, true); err != nil {
		return errors.Join(err, steerOne(wire.VerbResume, p.t))
	}
	return nil
}

func (p paused) resume() error {
	if err := wire.MarkPaused(p.mark, false); err != nil {
		return err
	}
	return steerOne(wire.VerbResume, p.t)
}

// copyState has the engine write its state into the arena, and reports it.
func copyState(c *urpc.Client, arena *pager.Arena, out *events) error {
	sock, err := arena.Serve()
	if err != nil {
		return err
	}
	defer sock.Close()
	start := time.Now()
	err = c.Call(boot.ContMgrCheckpoint, &control.SaveOpts{
		Metadata:           statefile.CompressionLevelNone.ToMetadata(),
		Resume:             true,
		UseCheckpointGofer: true,
		HavePagesFile:      true,
		FilePayload:        urpc.FilePayload{Files: []*os.File{sock}},
	}, nil)
	held := time.Since(start)
	if err != nil {
		return fmt.Errorf("engine: checkpoint: %w", err)
	}
	sizes := wire.Sizes{PauseNS: held.Nanoseconds()}
	sizes.State, sizes.Meta, sizes.Pages = arena.Sizes()
	table := pageset.EncodeTable(arena.Ranges(), arena.Copied())
	if _, err := os.NewFile(wire.FDIDs, "ranges").Write(table); err != nil {
		return fmt.Errorf("helper: handing over page identities: %w", err)
	}
	sizes.Ranges, sizes.Copied = int64(len(table)), arena.Bytes()
	if sizes.State == 0 || sizes.Meta == 0 {
		return errors.New("engine: checkpoint: the engine wrote no state")
	}
	out.done(wire.Event{Sizes: sizes})
	return nil
}

// hold keeps a paused engine until it is told what to do with it. Nobody there
// to tell, or the limit over, means that it goes on.
func (p paused) hold(in *bufio.Reader, out *events, limit time.Duration) error {
	told := make(chan wire.Command, 1)
	go func() {
		cmd, err := readLine[wire.Command](in)
		if err != nil {
			cmd.Do = wire.VerbResume
		}
		told <- cmd
	}()
	cmd := wire.Command{Do: wire.VerbResume}
	select {
	case cmd = <-told:
	case <-time.After(limit):
	}
	if cmd.Do != wire.Keep {
		if err := p.resume(); err != nil {
			return err
		}
	}
	out.done(wire.Event{Command: cmd.ID})
	return nil
}

func signalIgnore(sigs ...unix.Signal) {
	for _, s := range sigs {
		signal.Ignore(s)
	}
}
