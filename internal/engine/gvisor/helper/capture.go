// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/gvisor/disk"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/engine/pageset"
	"github.com/opencomputer/oc/internal/pager"
)

// captures serves the captures of one generation: one, or, where the server wants
// this process to stay, one after the other, for which the guest's memory stays
// mapped. If this process is killed the engine runs on within milliseconds, unless
// it was to be held: then it stays paused.
func captures(in *bufio.Reader, out *events, req wire.Request) error {
	c := &capturer{in: in, out: out, target: req.Targets[0]}
	if req.HoldMS == 0 {
		// Nobody else would end this process then if it hung, with the engine frozen.
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) // never fails (prctl(2))
	}
	if err := c.capture(req); err != nil || !req.Stay || req.HoldMS > 0 {
		return err
	}
	return c.stay()
}

// capturer is what lasts from one capture of a generation to the next.
type capturer struct {
	in     *bufio.Reader
	out    *events
	target wire.Target
	memory *pager.Mapping // nil: it is not mapped
}

// capture copies the running generation's state into the arena that was handed over.
func (k *capturer) capture(req wire.Request) error {
	files, err := received(wire.FDState, wire.FDMeta, wire.FDPages, wire.FDIDs, wire.FDMark)
	if err != nil {
		return err
	}
	defer closeAll(files)
	state, meta, pages, ids, mark := files[0], files[1], files[2], files[3], files[4]
	arena, err := pager.NewArena(state, meta, pages)
	if err != nil {
		return err
	}
	defer arena.Close()
	c, err := connect(k.target)
	if err != nil {
		return err
	}
	defer c.Close()
	// The engine would otherwise wait for the rest of its memory inside the pause.
	if err := c.Call(boot.ContMgrWaitRestore, nil, nil); err != nil && !strings.Contains(err.Error(), "is not being restored") {
		return fmt.Errorf("engine: loading before the checkpoint: %w", err)
	}
	if err := k.makeReady(arena, req); err != nil {
		return err
	}
	if req.Ask {
		if err := k.ask(); err != nil {
			return err
		}
	}
	if req.Frozen != nil {
		if err := req.Frozen.Apply(); err != nil {
			return err
		}
	}
	if req.HoldMS == 0 {
		return copyState(c, arena, ids, k.out)
	}
	ignoreHangups()
	p := paused{t: k.target, mark: mark}
	if err := p.pause(); err != nil {
		return err
	}
	if err := copyState(c, arena, ids, k.out); err != nil {
		return errors.Join(err, p.resume())
	}
	return p.hold(k.in, k.out, time.Duration(req.HoldMS)*time.Millisecond)
}

// ask waits until the server has done what it has to before the freeze.
func (k *capturer) ask() error {
	k.out.send(wire.Event{Event: wire.EventReady})
	if cmd, err := readLine[wire.Command](k.in); err != nil || cmd.Do != wire.Freeze {
		return errors.New("helper: the capture was given up before the freeze")
	}
	return nil
}

// makeReady does all that can be done before the freeze, side by side: it learns
// the base, maps the guest's memory, and makes room in the arena.
func (k *capturer) makeReady(arena *pager.Arena, req wire.Request) (err error) {
	pid := k.target.PID
	var base *engine.Base
	var wg sync.WaitGroup
	wg.Go(func() {
		if k.memory == nil {
			k.memory = mapMemory(pid)
		}
		if k.memory != nil {
			warm(k.target, k.memory)
		}
	})
	wg.Go(func() { arena.Prefault(expected(pid, req)) })
	if req.Base {
		wg.Go(func() { base, err = readBase() })
	}
	wg.Wait()
	if k.memory != nil {
		arena.Know(k.memory)
	}
	if base != nil {
		arena.Compare(base)
	}
	return err
}

// expected is how much a capture will copy, in bytes: all of what there is, unless the
// server knows better, for to ask takes 5 ms.
func expected(pid int, req wire.Request) int64 {
	if req.Base && req.Expect > 0 {
		return req.Expect
	}
	return disk.MemoryUsage(pid) + disk.Overlay{}.Usage(pid)
}

// readBase reads what the arena shall compare with.
func readBase() (*engine.Base, error) {
	files, err := received(wire.FDBase)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	f := files[0]
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("helper: the base of a capture: %w", err)
	}
	raw, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("helper: reading the base of a capture: %w", err)
	}
	defer func() { _ = unix.Munmap(raw) }() // it is one
	base, err := pageset.DecodeBase(raw)
	if err != nil {
		return nil, fmt.Errorf("helper: the base of a capture: %w", err)
	}
	return base, nil
}

// paused is an engine that this helper, or another one, pauses, and says so where
// others see it.
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
	if err := wire.MarkPaused(p.mark, false); err != nil { // first: never twice
		return err
	}
	return steerOne(wire.VerbResume, p.t)
}

// release resumes it where the mark says that it is paused.
func (p paused) release() error {
	is, err := wire.IsPaused(p.mark)
	if err != nil || !is {
		return err
	}
	return p.resume()
}

// copyState has the engine write its state into the arena, and reports it. ids takes
// the identities of the pages.
func copyState(c *urpc.Client, arena *pager.Arena, ids *os.File, out *events) error {
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
	if _, err := ids.Write(table); err != nil {
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
	var err error
	if cmd.Do == wire.Keep {
		err = wire.MarkPaused(p.mark, false) // nobody is to let it go on
	} else {
		err = p.resume()
	}
	if err != nil {
		return err
	}
	out.done(wire.Event{Command: cmd.ID})
	return nil
}
