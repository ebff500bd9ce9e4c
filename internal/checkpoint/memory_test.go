// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/hostmem"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// measured is an engine whose guests take as much memory as a test says, and
// that notes the budgets of captures and how much of them is there at once.
type measured struct {
	*sandboxtest.Engine
	usage atomic.Int64
	asked chan struct{} // one for each question after the usage; not waited for

	mu      sync.Mutex
	budgets []int64
	bytes   int64 // that the last capture was said to be of
	open    int64 // bytes of captures that are being made or are not closed
	peak    int64
	held    func() // called at the end of CaptureHeld
}

func (m *measured) Usage(engine.Process) (memory, disk int64) {
	select {
	case m.asked <- struct{}{}:
	default:
	}
	return m.usage.Load(), 0
}

func (m *measured) Capture(ctx context.Context, p engine.Process, opts engine.CaptureOptions) (*engine.Capture, error) {
	n := m.usage.Load()
	m.mu.Lock()
	m.budgets = append(m.budgets, opts.Budget)
	m.bytes = opts.Bytes
	m.open += n
	m.peak = max(m.peak, m.open)
	m.mu.Unlock()
	gone := sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.open -= n
	})
	c, err := m.Engine.Capture(ctx, p, opts)
	if err != nil {
		gone()
		return nil, err
	}
	c.Close = gone
	return c, nil
}

func (m *measured) CaptureHeld(ctx context.Context, p engine.Process, opts engine.CaptureOptions, limit time.Duration) (*engine.Capture, engine.Held, error) {
	_, held, err := m.Engine.CaptureHeld(ctx, p, opts, limit)
	if err != nil {
		return nil, nil, err
	}
	c, err := m.Capture(ctx, p, opts)
	if m.held != nil {
		m.held()
	}
	return c, held, err
}

func (m *measured) lastBudget() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.budgets[len(m.budgets)-1]
}

// scarce is a node on a machine of 100 GB, of which a test says how much is
// available; 100 MB of it stay reserved.
type scarce struct {
	*node
	available atomic.Int64
	ledger    *admission.Ledger
	engine    *measured
}

const scarceBudget = 1 << 30

func newScarce(t *testing.T) *scarce {
	t.Helper()
	w := sandboxtest.New(t)
	s := &scarce{node: &node{World: w, dir: filepath.Join(t.TempDir(), "checkpoints")}, engine: &measured{Engine: w.Engine, asked: make(chan struct{}, 100)}}
	s.set(10000)
	s.ledger = admission.New(func() (hostmem.Memory, error) {
		return hostmem.Memory{Total: 100 << 30, Available: s.available.Load()}, nil
	}, 100<<20)
	s.openStore(t)
	cfg := w.Config(t)
	cfg.Engine, cfg.Memory = s.engine, s.ledger
	s.sandboxes = sandbox.New(cfg)
	s.checkpoints = checkpoint.New(checkpoint.Config{
		Meta: w.Meta, Sandboxes: s.sandboxes, Engine: s.engine, Images: w, Store: s.store,
		Memory: s.ledger, Budget: scarceBudget, Log: w.Log, DataFree: func() (int64, error) { return 1 << 40, nil },
	})
	t.Cleanup(s.stop)
	if err := errors.Join(s.checkpoints.Start(t.Context()), s.sandboxes.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scarce) set(availableMB int64) { s.available.Store(availableMB << 20) }

// nothingPromised waits until it is so.
func (s *scarce) nothingPromised(t *testing.T) {
	t.Helper()
	sandboxtest.Eventually(t, "nothing is promised", func() bool { return s.ledger.Promised() == 0 })
}

// A capture that memory has no room for goes through the disk; without memory
// for that, it is refused.
func TestCaptureIsAdmitted(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	sb := s.box(t, "s")
	s.engine.usage.Store(200 << 20)
	for name, c := range map[string]struct {
		usageMB, availableMB, budget int64
	}{
		"enough":                 {200, 428, scarceBudget},
		"not enough":             {200, 427, 0},
		"larger than the budget": {1025, 9999, 0},
		"just enough for disk":   {200, 228, 0},
	} {
		s.engine.usage.Store(c.usageMB << 20)
		s.set(c.availableMB)
		s.checkpoint(t, sb.ID, name)
		if got := s.engine.lastBudget(); got != c.budget {
			t.Errorf("%s: a budget of %d", name, got)
		}
	}
	s.set(227)
	n := len(s.engine.budgets)
	_, err := s.checkpoints.Create(t.Context(), s.Org, sb.ID, checkpoint.CreateRequest{Name: "none"})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "128 MB needed; 227 MB available") {
		t.Errorf("without memory: %v", err)
	}
	if len(s.engine.budgets) != n {
		t.Error("it was captured")
	}
	s.nothingPromised(t)
	// The reason is kept for who did not wait.
	rows, err := s.checkpoints.List(t.Context(), s.Org, sb.ID)
	if err != nil || !slices.ContainsFunc(rows, func(c meta.Checkpoint) bool {
		return c.Status == meta.CheckpointFailed && strings.Contains(c.ErrorMsg, "227 MB available")
	}) {
		t.Errorf("%+v, %v", rows, err)
	}
}

// create makes a checkpoint in the background.
func (s *scarce) create(t *testing.T, sandboxID string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := s.checkpoints.Create(t.Context(), s.Org, sandboxID, checkpoint.CreateRequest{Name: "c"})
		done <- err
	}()
	return done
}

// Captures that the budget has no room for at once come one after the other, all
// of them through memory.
func TestCapturesWaitTheirTurn(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	s.engine.usage.Store(300 << 20) // and 128 MB: two fit
	reached, letGo := s.holdAt(sandboxtest.Capture)
	var boxes []meta.Sandbox
	for range 6 {
		boxes = append(boxes, s.box(t, "s"))
	}
	var made []<-chan error
	for _, sb := range boxes {
		made = append(made, s.create(t, sb.ID))
	}
	await(t, "a capture", reached)
	letGo()
	for _, done := range made {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if s.engine.open != 0 || s.engine.peak > 2*300<<20 {
		t.Errorf("%d MB are held, %d MB were at once", s.engine.open>>20, s.engine.peak>>20)
	}
	if len(s.engine.budgets) != 6 || slices.ContainsFunc(s.engine.budgets, func(n int64) bool { return n != scarceBudget }) {
		t.Errorf("budgets %v", s.engine.budgets)
	}
	s.nothingPromised(t)
}

// One that waits does nothing to its sandbox, and gives up with its context; the
// room of one that failed, or was given up, is the next one's.
func TestRoomIsGivenBack(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	s.engine.usage.Store(600 << 20) // one fits
	a, b := s.box(t, "a"), s.box(t, "b")

	reached, letGo := s.holdAt(sandboxtest.Capture)
	first := s.create(t, a.ID)
	await(t, "the first capture", reached)
	for len(s.engine.asked) > 0 {
		<-s.engine.asked
	}
	ctx, cancel := context.WithCancel(t.Context())
	forked := make(chan error, 1)
	go func() {
		_, _, err := s.checkpoints.Fork(ctx, s.Org, b.ID, checkpoint.SpawnRequest{})
		forked <- err
	}()
	for range 2 { // for the disk's space, then for the budget
		<-s.engine.asked
	}
	cancel()
	if err := <-forked; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	letGo()
	if err := <-first; err != nil {
		t.Error(err)
	}
	if n := len(s.engine.budgets); n != 1 {
		t.Errorf("%d captures", n)
	}

	s.failAt(sandboxtest.Capture, errStep)
	for range 2 {
		if _, err := s.checkpoints.Create(t.Context(), s.Org, b.ID, checkpoint.CreateRequest{Name: "fails"}); err == nil {
			t.Error("captured")
		}
	}
	s.failAt("", nil)
	s.checkpoint(t, b.ID, "last")
}

// A saved state whose restore does not take place is not kept: neither its row
// as one that is being made, nor its room.
func TestSavedInVain(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	a, b := s.box(t, "a"), s.box(t, "b")
	cp := s.checkpoint(t, a.ID, "c")
	s.engine.usage.Store(600 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	s.engine.held = cancel
	if _, err := s.checkpoints.RestoreSaving(ctx, s.Org, a.ID, cp.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("a restore that is given up: %v", err)
	}
	rows, err := s.checkpoints.List(t.Context(), s.Org, a.ID)
	if err != nil || !slices.ContainsFunc(rows, func(c meta.Checkpoint) bool {
		return c.Automatic && c.Status == meta.CheckpointFailed && strings.Contains(c.ErrorMsg, "did not take place")
	}) {
		t.Errorf("%+v, %v", rows, err)
	}
	s.checkpoint(t, b.ID, "has room")
	if s.engine.open != 0 {
		t.Errorf("%d MB are held", s.engine.open>>20)
	}
}

// A spawn holds its claim until the clones are loaded, lost or given up; a
// refused one leaves nothing behind.
func TestSpawnIsAdmitted(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	sb := s.box(t, strings.Repeat("s", 1<<20)) // a state of 1 MB becomes 4 MB
	cp := s.checkpoint(t, sb.ID, "c")
	s.set(100 + 2*68 - 1)
	spawn := func() error {
		_, err := s.checkpoints.Spawn(t.Context(), s.Org, cp.ID, checkpoint.SpawnRequest{Count: 2})
		return err
	}
	if err := spawn(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "136 MB needed; 235 MB available") || !strings.Contains(err.Error(), cp.ID) {
		t.Errorf("without memory: %v", err)
	}
	s.Exactly(t, sb.GenerationID)
	s.set(100 + 2*68)

	reached, letGo := s.holdAt(sandboxtest.Load)
	s.engine.usage.Store(1 << 20)
	if err := spawn(); err != nil {
		t.Fatal(err)
	}
	<-reached
	if got := s.ledger.Promised(); got != 2*67<<20 {
		t.Errorf("%d MB promised while 2 of 8 MB are loaded", got>>20)
	}
	if err := spawn(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "134 MB are promised") {
		t.Errorf("a second one beside it: %v", err)
	}
	letGo()
	s.nothingPromised(t)

	for _, step := range []string{sandboxtest.Restore, sandboxtest.Load} {
		s.failAt(step, errors.New("no "+step))
		if err := spawn(); err == nil && step == sandboxtest.Restore {
			t.Error("spawned without a restore")
		}
		s.nothingPromised(t)
	}
}

// A restore in place has both generations in memory at once. Refused, the old
// one runs on.
func TestRestoreIsAdmitted(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	sb := s.box(t, "s")
	cp := s.checkpoint(t, sb.ID, "c")
	s.set(164)
	err := s.checkpoints.Restore(t.Context(), s.Org, sb.ID, cp.ID)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "164 MB available") {
		t.Errorf("without memory: %v", err)
	}
	if s.sandbox(t, sb.ID).GenerationID != sb.GenerationID {
		t.Error("it has another generation")
	}
	s.set(165)
	if err := s.checkpoints.Restore(t.Context(), s.Org, sb.ID, cp.ID); err != nil {
		t.Error(err)
	}
	s.nothingPromised(t)
}

// The engine is told how much a sandbox that still loads will have.
func TestCaptureOfWhatStillLoads(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	sb := s.box(t, strings.Repeat("s", 1<<20))
	cp := s.checkpoint(t, sb.ID, "c")
	reached, letGo := s.holdAt(sandboxtest.Load)
	defer letGo()
	s.engine.usage.Store(0)
	made, err := s.checkpoints.Spawn(t.Context(), s.Org, cp.ID, checkpoint.SpawnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	s.checkpoint(t, made[0].ID, "d")
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if s.engine.bytes != cp.SizeBytes {
		t.Errorf("it was told of %d bytes, want %d", s.engine.bytes, cp.SizeBytes)
	}
}

// What still loads when a server ends is owed by the next one.
func TestLoadingIsOwedByTheNextServer(t *testing.T) {
	t.Parallel()
	s := newScarce(t)
	sb := s.box(t, strings.Repeat("s", 1<<20))
	cp := s.checkpoint(t, sb.ID, "c")
	reached, letGo := s.holdAt(sandboxtest.Load)
	s.engine.usage.Store(0)
	if _, err := s.checkpoints.Spawn(t.Context(), s.Org, cp.ID, checkpoint.SpawnRequest{}); err != nil {
		t.Fatal(err)
	}
	<-reached
	s.stop()
	s.nothingPromised(t)
	cfg := s.Config(t)
	cfg.Engine, cfg.Memory = s.engine, s.ledger
	s.sandboxes = sandbox.New(cfg)
	if err := s.sandboxes.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.ledger.Promised(); got != cp.SizeBytes {
		t.Errorf("%d bytes promised, want %d", got, cp.SizeBytes)
	}
	letGo()
}
