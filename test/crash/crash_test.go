// SPDX-License-Identifier: Apache-2.0

// Package crash kills the product's processes at random moments of its
// operations and checks that nothing acknowledged is lost and nothing is left.
//
// A round begins an operation, kills the server, the keeper, a helper or a
// pager some milliseconds later, starts the server again, and compares what
// there is with what was promised; another test does the same with the server and
// what it keeps in a bucket. OC_TEST_LONG=1 runs more rounds;
// OC_CRASH_SEED repeats a run's choices.
package crash

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

const (
	roundsShort = 20
	roundsLong  = 200
	// patience bounds each wait: a loaded machine is slow.
	patience = 2 * time.Minute
	poll     = 50 * time.Millisecond
	// window is how long after the beginning of an operation the kill comes at
	// the latest.
	window = 400 * time.Millisecond
)

// counter counts in a file that is replaced whole, for as long as it lives.
const counter = `i=0; while true; do i=$((i+1)); echo $i > n.new; mv n.new n; sleep 0.02; done`

func TestNothingAcknowledgedIsLost(t *testing.T) {
	rounds := roundsShort
	if os.Getenv("OC_TEST_LONG") != "" {
		rounds = roundsLong
	}
	rnd := seeded(t)
	pool := rnd.IntN(2) * 2
	w := newWorld(t, rnd, harness.Settings{"load-rate": 100, "pool": pool})
	w.pool = pool
	for range 2 {
		if err := w.create(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range rounds {
		t.Run(fmt.Sprintf("round %d", i), w.round)
		if t.Failed() {
			t.Fatalf("the server's log:\n%s", w.server.Log())
		}
	}
}

// seeded makes the choices of a run, by OC_CRASH_SEED if that is set.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("OC_CRASH_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("OC_CRASH_SEED: %v", err)
		}
	}
	t.Logf("OC_CRASH_SEED=%d repeats the choices of this run", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// world is what was promised so far.
type world struct {
	t           *testing.T
	rnd         *rand.Rand
	server      *harness.Server
	pool        int               // engines that may be there without a sandbox
	sandboxes   map[string]int    // running, with the least that its counter must show
	checkpoints map[string]int    // ready, with the least that it holds
	owner       map[string]string // of a checkpoint
	loading     map[string]bool   // sandboxes that this round may have been loading
	names       int
}

func newWorld(t *testing.T, rnd *rand.Rand, settings harness.Settings, env ...string) *world {
	s, err := harness.New("", settings, env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the server: %v", err)
		}
	})
	w := &world{t: t, rnd: rnd, server: s, sandboxes: map[string]int{}, checkpoints: map[string]int{}, owner: map[string]string{}}
	w.up(t)
	if out, err := s.Run(t.Context(), nil, "template", "build", "small"); err != nil || out.Code != 0 {
		t.Fatalf("building the template: %v\n%s", err, out)
	}
	return w
}

func (w *world) up(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.server.Up(ctx); err != nil {
		t.Fatalf("starting the server: %v\n%s", err, w.server.Log())
	}
}

func (w *world) api() *client.Client {
	c, err := w.server.Client(w.server.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// victims are what may be killed, by what their command lines hold.
var victims = map[string][]string{
	"server":            {" serve"},
	"keeper":            {" keeper"},
	"server and keeper": {" serve", " keeper"},
	"helper":            {"engine-helper prepare", "engine-helper capture", "engine-helper pause", "engine-helper resume", "engine-helper watch", "engine-helper standby"},
	"pager":             {"engine-helper restore", "engine-helper pager"},
}

func (w *world) round(t *testing.T) {
	operations := map[string]func(context.Context) error{
		"create": w.create, "checkpoint": w.checkpoint, "restore": w.restore, "spawn": w.spawn, "delete": w.deleteCheckpoint,
	}
	op := pick(w.rnd, "create", "checkpoint", "checkpoint", "restore", "restore", "spawn", "spawn", "delete")
	victim := pick(w.rnd, "server", "server", "server", "keeper", "server and keeper", "helper", "pager")
	delay := time.Duration(w.rnd.Int64N(int64(window)))
	t.Logf("%s; %v later the %s is killed", op, delay, victim)
	w.loading = map[string]bool{}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- operations[op](ctx) }()
	select {
	case err := <-done:
		done <- err
	case <-time.After(delay):
	}
	killed := w.kill(t, victim)
	t.Logf("killed: %v; %s: %v", killed, op, <-done)
	w.up(t) // does nothing where it is up
	w.check(t, victim)
	w.thin(t)
}

func pick(rnd *rand.Rand, from ...string) string { return from[rnd.IntN(len(from))] }

// some gives a key of a map, "" of an empty one.
func some[V any](rnd *rand.Rand, m map[string]V) string {
	keys := slices.Sorted(maps.Keys(m))
	if len(keys) == 0 {
		return ""
	}
	return keys[rnd.IntN(len(keys))]
}

// kill kills, and waits until the killed are gone: a server that is still dying
// looks as if it were up.
func (w *world) kill(t *testing.T, victim string) (killed []string) {
	t.Helper()
	pids := map[int]bool{}
	for _, p := range w.server.Processes() {
		line := strings.Join(p.Args, " ")
		for _, mark := range victims[victim] {
			if strings.Contains(line, mark) && syscall.Kill(p.PID, syscall.SIGKILL) == nil {
				killed = append(killed, line)
				pids[p.PID] = true
			}
		}
	}
	await(t, "the killed are gone", func(context.Context) error {
		for _, p := range w.server.Processes() {
			if pids[p.PID] {
				return errors.New(p.String())
			}
		}
		return nil
	})
	return killed
}

// The operations. What they are told is done is a promise from then on.

func (w *world) create(ctx context.Context) error {
	sb, err := w.api().CreateSandbox(ctx, client.CreateSandboxRequest{TemplateID: "small", MemoryMB: 256}, nil)
	if err != nil {
		return err
	}
	if _, err := w.api().StartExec(ctx, sb.ID, client.ExecRequest{Cmd: "bash", Args: []string{"-c", counter}}); err != nil {
		// Not counting: of no use to later rounds.
		return errors.Join(err, w.api().KillSandbox(ctx, sb.ID))
	}
	w.sandboxes[sb.ID] = 0
	return nil
}

func (w *world) checkpoint(ctx context.Context) error {
	id := some(w.rnd, w.sandboxes)
	w.names++
	before := w.sandboxes[id]
	cp, err := w.api().CreateCheckpoint(ctx, id, client.CreateCheckpointRequest{
		Name: fmt.Sprint("cp", w.names), RetentionPolicy: &client.RetentionPolicy{Mode: "delete_oldest", MaxCount: 5},
	})
	if err != nil {
		return err
	}
	if cp.Status != client.CheckpointReady {
		return fmt.Errorf("checkpoint %s is %s: %s", cp.ID, cp.Status, cp.ErrorMsg)
	}
	w.checkpoints[cp.ID], w.owner[cp.ID] = before, id
	return nil
}

func (w *world) restore(ctx context.Context) error {
	cp := some(w.rnd, w.checkpoints)
	if cp == "" {
		return w.checkpoint(ctx)
	}
	id := w.owner[cp]
	if _, ok := w.sandboxes[id]; !ok {
		id = some(w.rnd, w.sandboxes)
	}
	w.loading[id] = true
	w.sandboxes[id] = min(w.sandboxes[id], w.checkpoints[cp]) // whether it comes to it or not
	_, err := w.api().RestoreCheckpoint(ctx, id, cp, client.RestoreRequest{NoSave: w.rnd.IntN(2) == 0})
	return err
}

func (w *world) spawn(ctx context.Context) error {
	cp := some(w.rnd, w.checkpoints)
	if cp == "" {
		return w.checkpoint(ctx)
	}
	res, err := w.api().SpawnCheckpoint(ctx, cp, client.SpawnRequest{Count: 2})
	if err != nil {
		return err
	}
	for _, sb := range res.All() {
		w.sandboxes[sb.ID] = w.checkpoints[cp]
		w.loading[sb.ID] = true
	}
	return nil
}

func (w *world) deleteCheckpoint(ctx context.Context) error {
	cp := some(w.rnd, w.checkpoints)
	if cp == "" {
		return w.checkpoint(ctx)
	}
	delete(w.checkpoints, cp) // from here on it may be gone
	return w.api().DeleteCheckpoint(ctx, w.owner[cp], cp)
}
