// SPDX-License-Identifier: Apache-2.0

// Package crash kills the product's processes at random moments of its
// operations and checks that nothing acknowledged is lost and nothing is left.
//
// A round begins an operation, kills the server, the keeper, a helper or a
// pager some milliseconds later, or has the server end at a named point between
// two steps of the operation (internal/killpoint), starts the server again, and
// compares what there is with what was promised; another test does the same with
// the server and what it keeps in a bucket. OC_TEST_LONG=1 runs more rounds.
//
// The choices of a round follow from the seed and the round's number alone,
// whatever the rounds before came to: OC_CRASH_SEED repeats them all, and
// OC_CRASH_ROUND besides runs only that round.
package crash

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/killpoint"
	"github.com/opencomputer/oc/test/harness"
)

const (
	roundsShort = 20
	roundsLong  = 200
	// patience bounds each wait: a loaded machine is slow.
	patience = 2 * time.Minute
	poll     = 50 * time.Millisecond
)

// windows are how long after the beginning of an operation the kill comes at the
// latest: about as long as it takes.
var windows = map[string]time.Duration{
	"create": 250 * time.Millisecond, "checkpoint": 400 * time.Millisecond, "restore": 500 * time.Millisecond,
	"spawn": 400 * time.Millisecond, "delete": 60 * time.Millisecond,
}

// counter counts in a file for as long as it lives. It starts no process to do so:
// to start one costs an engine some ten milliseconds of a CPU, and several count.
// The file is never empty, and only gets longer.
const counter = `exec 3< <(sleep infinity); i=0; while true; do i=$((i+1)); echo $i 1<>n; read -t 0.05 -u 3; done`

func TestNothingAcknowledgedIsLost(t *testing.T) {
	rounds := roundsShort
	if os.Getenv("OC_TEST_LONG") != "" {
		rounds = roundsLong
	}
	seed := seeded(t)
	rnd := choices(seed, setUp)
	pool := rnd.IntN(2) * 2
	point := filepath.Join(t.TempDir(), "point")
	w := newWorld(t, rnd, harness.Settings{"load-rate": 100, "pool": pool}, killpoint.Env+"="+point)
	w.point = point
	w.pool = pool
	for range 2 {
		if err := w.create(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	cases := allCases(rnd)
	for i := range rounds {
		if only := os.Getenv("OC_CRASH_ROUND"); only != "" && only != strconv.Itoa(i) {
			continue
		}
		w.rnd = choices(seed, i)
		t.Run(fmt.Sprintf("round %d", i), func(t *testing.T) { w.round(t, cases[i%len(cases)]) })
		if t.Failed() {
			t.Fatalf("the server's log:\n%s", w.server.Log())
		}
	}
}

// setUp is the round of what comes before the first one.
const setUp = -1

// choices are those of a round.
func choices(seed uint64, round int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(round)))
}

// seeded gives the seed of a run: OC_CRASH_SEED if that is set.
func seeded(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("OC_CRASH_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("OC_CRASH_SEED: %v", err)
		}
	}
	t.Logf("OC_CRASH_SEED=%d repeats the choices of this run", seed)
	return seed
}

// crashCase is what a round kills, and when.
type crashCase struct {
	op     string
	victim string
	point  killpoint.Point // "": at random
}

// allCases are all pairs of an operation and what may be killed, at random
// moments, and all points, of which half have the keeper killed too: one after
// the other, in an order by chance.
func allCases(rnd *rand.Rand) []crashCase {
	var random, named []crashCase
	for _, op := range slices.Sorted(maps.Keys(windows)) {
		for _, victim := range slices.Sorted(maps.Keys(victims)) {
			random = append(random, crashCase{op: op, victim: victim})
		}
	}
	for _, p := range killpoint.All() {
		op, _, _ := strings.Cut(string(p), ":")
		named = append(named, crashCase{op: op, victim: pick(rnd, "server", "server and keeper"), point: p})
	}
	rnd.Shuffle(len(random), func(i, j int) { random[i], random[j] = random[j], random[i] })
	rnd.Shuffle(len(named), func(i, j int) { named[i], named[j] = named[j], named[i] })
	var all []crashCase
	for i := range max(len(random), len(named)) {
		all = append(all, random[i%len(random)], named[i%len(named)])
	}
	return all
}

// world is what was promised so far.
type world struct {
	t           *testing.T
	rnd         *rand.Rand
	server      *harness.Server
	saving      bool              // restores save what they replace, whatever chance says
	pool        int               // engines that may be there without a sandbox
	point       string            // the file that holds where the server is to end
	sandboxes   map[string]int    // running, with the least that its counter must show
	checkpoints map[string]int    // ready, with the least that it holds
	owner       map[string]string // of a checkpoint
	loading     map[string]string // sandboxes that this round may have been loading, and from what
	marks       map[string]string // what is written in a checkpoint
	tries       map[string]int    // of making a checkpoint, by sandbox
	try         map[string]int    // of a checkpoint: which one made it
	automatic   map[string]bool   // ready checkpoints that the server made itself
	born        map[string]int    // what has an id, in the order in which it came to be
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
	w := &world{
		t: t, rnd: rnd, server: s, sandboxes: map[string]int{}, checkpoints: map[string]int{}, owner: map[string]string{}, marks: map[string]string{},
		born: map[string]int{}, tries: map[string]int{}, try: map[string]int{},
	}
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
	"helper":            {"engine-helper prepare", "engine-helper capture", "engine-helper pause", "engine-helper resume", "engine-helper watch", "engine-helper standby", "engine-helper staying"},
	"pager":             {"engine-helper restore", "engine-helper pager"},
}

func (w *world) round(t *testing.T, c crashCase) {
	operations := map[string]func(context.Context) error{
		"create": w.create, "checkpoint": w.checkpoint, "restore": w.restore, "spawn": w.spawn, "delete": w.deleteCheckpoint,
	}
	w.loading = map[string]string{}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c.point != "" {
		w.endAt(t, c, operations[c.op])
	} else {
		delay := time.Duration(w.rnd.Int64N(int64(windows[c.op])))
		t.Logf("%s; %v later the %s is killed", c.op, delay, c.victim)
		done := make(chan error, 1)
		go func() { done <- operations[c.op](ctx) }()
		select {
		case err := <-done:
			done <- err
		case <-time.After(delay):
		}
		killed := w.kill(t, c.victim)
		t.Logf("killed: %v; %s: %v", killed, c.op, <-done)
	}
	w.up(t) // does nothing where it is up
	w.check(t, c.victim)
	w.thin(t)
}

// endAt has the server end at a point of an operation.
func (w *world) endAt(t *testing.T, c crashCase, operation func(context.Context) error) {
	t.Helper()
	t.Logf("the %s ends at %q", c.victim, c.point)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.saving = true
	defer func() { w.saving = false }()
	if err := os.WriteFile(w.point, []byte(c.point), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %v", c.op, operation(ctx))
	await(t, "the server is at "+string(c.point), func(context.Context) error {
		for _, p := range w.server.Processes() {
			if strings.Contains(strings.Join(p.Args, " "), " serve") {
				return errors.New(p.String())
			}
		}
		return nil
	})
	if err := os.Remove(w.point); err != nil { // the next one goes on
		t.Fatal(err)
	}
	if c.victim != "server" {
		w.kill(t, "keeper")
	}
}

func pick(rnd *rand.Rand, from ...string) string { return from[rnd.IntN(len(from))] }

// some gives a key of a map, "" of an empty one. Ids are by chance: their order is
// that in which they came to be.
func some[V any](w *world, m map[string]V) string {
	n := w.rnd.IntN(1 << 30) // one choice, whatever there is
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Or(w.born[a]-w.born[b], strings.Compare(a, b)) })
	if len(keys) == 0 {
		return ""
	}
	return keys[n%len(keys)]
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
	w.bear(sb.ID)
	return nil
}

// bear notes that something came to be.
func (w *world) bear(id string) { w.born[id] = len(w.born) + 1 }

// retained is how many checkpoints of a sandbox stay, besides automatic ones.
const retained = 5

func (w *world) checkpoint(ctx context.Context) error {
	id := some(w, w.sandboxes)
	w.names++
	w.tries[id]++
	before, try := w.sandboxes[id], w.tries[id]
	name := fmt.Sprint("cp", w.names)
	if _, err := w.api().RunExec(ctx, id, client.ExecRequest{Cmd: "bash", Args: []string{"-c", "echo " + name + " >mark"}}); err != nil {
		return err
	}
	cp, err := w.api().CreateCheckpoint(ctx, id, client.CreateCheckpointRequest{
		Name: name, RetentionPolicy: &client.RetentionPolicy{Mode: "delete_oldest", MaxCount: retained},
	})
	if err != nil {
		return err
	}
	if cp.Status != client.CheckpointReady {
		return fmt.Errorf("checkpoint %s is %s: %s", cp.ID, cp.Status, cp.ErrorMsg)
	}
	w.checkpoints[cp.ID], w.owner[cp.ID], w.marks[cp.ID], w.try[cp.ID] = before, id, name, try
	w.bear(cp.ID)
	return nil
}

func (w *world) restore(ctx context.Context) error {
	cp := some(w, w.checkpoints)
	if cp == "" {
		return w.checkpoint(ctx)
	}
	id := w.owner[cp]
	if _, ok := w.sandboxes[id]; !ok {
		id = some(w, w.sandboxes)
	}
	w.loading[id] = cp
	w.sandboxes[id] = min(w.sandboxes[id], w.checkpoints[cp]) // whether it comes to it or not
	_, err := w.api().RestoreCheckpoint(ctx, id, cp, client.RestoreRequest{NoSave: w.rnd.IntN(2) == 0 && !w.saving})
	return err
}

func (w *world) spawn(ctx context.Context) error {
	cp := some(w, w.checkpoints)
	if cp == "" {
		return w.checkpoint(ctx)
	}
	res, err := w.api().SpawnCheckpoint(ctx, cp, client.SpawnRequest{Count: 2})
	if err != nil {
		return err
	}
	for _, sb := range res.All() {
		w.sandboxes[sb.ID] = w.checkpoints[cp]
		w.loading[sb.ID] = cp
		w.bear(sb.ID)
	}
	return nil
}

func (w *world) deleteCheckpoint(ctx context.Context) error {
	cp := some(w, w.checkpoints)
	if cp == "" {
		return w.checkpoint(ctx)
	}
	delete(w.checkpoints, cp) // from here on it may be gone
	return w.api().DeleteCheckpoint(ctx, w.owner[cp], cp)
}
