// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// state is what a sandbox is in: what its checker says of all memory and disk, and
// whether it is making changes, in which case only it itself can tell.
type state struct {
	hash    string
	running bool
}

// saved is a checkpoint of the model.
type saved struct {
	state
	sandbox string
	made    int  // the how manieth it is
	undo    bool // it keeps what a restore replaced
}

// model is what the sandboxes and checkpoints of a server must be.
type model struct {
	t       *testing.T
	s       *harness.Server
	rng     *rand.Rand
	api     *client.Client
	live    map[string]state
	saved   map[string]saved
	made    int // checkpoints
	changes int
	starts  int            // comparisons
	evict   func()         // unless nil, now and then
	steps   map[string]int // by kind
}

const (
	mostLive  = 4  // sandboxes
	mostSaved = 7  // checkpoints of a sandbox's user; the limit is 10
	mostUndo  = 3  // that the server keeps
	caughtOut = 10 // MB of cache: less than one sandbox has

	checker = "/home/sandbox/checker" // the program inside
)

// TestEveryByteIsAsItWas compares the whole memory and disk of sandboxes with what
// they were, over random changes, checkpoints, restores, forks, spawns and
// deletions, by a seed that OC_TEST_SEED gives again. In the short mode the steps
// are as many as the time allows.
func TestEveryByteIsAsItWas(t *testing.T) {
	t.Parallel()
	const shortTime = 25 * time.Second
	for name, where := range map[string]func(t *testing.T) (*harness.Server, func()){
		"directory": func(t *testing.T) (*harness.Server, func()) {
			return ownServer(t, "", harness.Settings{"load-rate": slowLoad, "cache": caughtOut}), nil
		},
		"bucket": func(t *testing.T) (*harness.Server, func()) {
			s := startRemote(t).use(harness.Settings{"load-rate": slowLoad, "cache": caughtOut})
			return s, func() { uncache(t, s) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, evict := where(t)
			m := &model{
				t: t, s: s, rng: rand.New(rand.NewPCG(seed(t), 0)), api: api(t, s), evict: evict,
				live: map[string]state{}, saved: map[string]saved{}, steps: map[string]int{},
			}
			m.begin()
			begin := time.Now()
			for n := 0; n < count(60, 1200) && (long || time.Since(begin) < shortTime); n++ {
				m.step()
			}
			m.finish()
			t.Logf("%d changes, %d checkpoints, %d starts compared in %v: %v", m.changes, m.made, m.starts, time.Since(begin).Round(time.Second), m.steps)
		})
	}
}

func seed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("OC_TEST_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		must(t, err)
	}
	t.Logf("OC_TEST_SEED=%d", seed)
	return seed
}

// begin makes a sandbox with a checker, whose tree begins with files of the image.
func (m *model) begin() {
	const pages = 6 << 10
	program := filepath.Join(m.t.TempDir(), "checker")
	must(m.t, harness.BuildChecker(m.t.Context(), program))
	b := create(m.t, m.s)
	oc(m.t, m.s, "push", b.id, program, checker)
	tree := b.sh("dirname $(python3 -c 'import email; print(email.__file__)')")
	oc(m.t, m.s, "exec", b.id, "--user", "root", "--detach", "--", "bash", "-c", fmt.Sprintf("chmod +x %[1]s; exec %[1]s serve %d %s", checker, pages, tree))
	await(m.t, "the checker runs", func() bool { return b.exec(checker, "ask", "check").Code == 0 })
	m.live[b.id] = state{hash: m.ask(b.id, "hash")}
}

// ask asks the checker of a sandbox.
func (m *model) ask(id, format string, args ...any) string {
	m.t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	res, err := m.api.RunExec(m.t.Context(), id, client.ExecRequest{Cmd: checker, Args: append([]string{"ask"}, words...)})
	if err != nil || res.ExitCode != 0 {
		m.t.Fatalf("%s: %q: %v, exit code %d\n%s", id, words, err, res.ExitCode, res.Stderr)
	}
	return strings.TrimSpace(res.Stdout)
}

// compare compares what has been started, or was left alone, with what it was.
func (m *model) compare(id, what string, want state) {
	m.t.Helper()
	m.starts++
	m.live[id] = want
	if !want.running {
		got := m.ask(id, "hash")
		if got != want.hash {
			m.t.Fatalf("%s: %s is\n%s, it was\n%s: %v", what, id, got, want.hash, m.explain(id))
		}
		if m.rng.IntN(4) > 0 {
			return
		}
	}
	m.settle(id)
}

// explain asks the checker what is different; the test fails anyway.
func (m *model) explain(id string) string {
	res, err := m.api.RunExec(m.t.Context(), id, client.ExecRequest{Cmd: checker, Args: []string{"ask", "check"}})
	return fmt.Sprint(res.Stdout, res.Stderr, err)
}

// settle has a sandbox make no more changes, and check itself.
func (m *model) settle(id string) {
	m.t.Helper()
	if m.live[id].running {
		m.ask(id, "stop")
	}
	m.ask(id, "check")
	m.live[id] = state{hash: m.ask(id, "hash")}
}

func pick[V any](rng *rand.Rand, from map[string]V) string {
	keys := slices.Sorted(maps.Keys(from))
	return keys[rng.IntN(len(keys))]
}

// step is one of what a user may do.
func (m *model) step() {
	if m.evict != nil && m.rng.IntN(3) == 0 {
		m.evict()
	}
	id := pick(m.rng, m.live)
	kinds := []struct {
		name   string
		weight int
		do     func(id string)
	}{
		{"update", 8, m.update}, {"run", 2, m.run}, {"checkpoint", 8, m.checkpoint}, {"restore", 4, m.restore}, {"spawn", 4, m.spawn},
		{"fork", 4, m.fork}, {"delete", 5, m.delete}, {"gc", 2, m.collect}, {"kill", 4, m.kill},
	}
	n := 0
	for _, k := range kinds {
		n += k.weight
	}
	n = m.rng.IntN(n)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			m.steps[k.name]++
			k.do(id)
			return
		}
	}
}

func (m *model) update(id string) {
	n := 100 + m.rng.IntN(700)
	if m.live[id].running {
		m.settle(id)
	}
	m.ask(id, "update %d %d", m.rng.Uint64(), n)
	m.changes += n
	m.live[id] = state{hash: m.ask(id, "hash")}
}

// run has a sandbox make changes while other things happen.
func (m *model) run(id string) {
	if m.live[id].running {
		m.settle(id)
		return
	}
	m.ask(id, "run %d", m.rng.Uint64())
	m.live[id] = state{running: true}
}

// keep notes a checkpoint.
func (m *model) keep(cp string, s saved) {
	m.made++
	s.made = m.made
	m.saved[cp] = s
}

// of gives a sandbox's checkpoints that its user made, or that keep what restores
// replaced, oldest first.
func (m *model) of(sandbox string, undo bool) []string {
	var ids []string
	for id, c := range m.saved {
		if c.sandbox == sandbox && c.undo == undo {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return m.saved[a].made - m.saved[b].made })
	return ids
}

func (m *model) checkpoint(id string) {
	for old := m.of(id, false); len(old) >= mostSaved; old = old[1:] {
		m.drop(old[0])
	}
	cp, err := m.api.CreateCheckpoint(m.t.Context(), id, client.CreateCheckpointRequest{Name: fmt.Sprint("c", m.made)})
	if err != nil || cp.Status != client.CheckpointReady {
		m.t.Fatalf("a checkpoint of %s is %s %s: %v", id, cp.Status, cp.ErrorMsg, err)
	}
	m.keep(cp.ID, saved{state: m.live[id], sandbox: id})
}

// restore restores to a checkpoint of any sandbox.
func (m *model) restore(id string) {
	if len(m.saved) == 0 {
		return
	}
	cp, lose := pick(m.rng, m.saved), m.rng.IntN(2) == 0
	res, err := m.api.RestoreCheckpoint(m.t.Context(), id, cp, client.RestoreRequest{NoSave: lose})
	if err != nil {
		m.t.Fatalf("restoring %s to %s: %v", id, cp, err)
	}
	want := m.saved[cp].state
	if !lose {
		m.keep(res.SavedCheckpointID, saved{state: m.live[id], sandbox: id, undo: true})
		for old := m.of(id, true); len(old) > mostUndo; old = old[1:] { // the server does that
			delete(m.saved, old[0])
		}
	}
	m.compare(id, "restored to "+cp, want)
}

func (m *model) spawn(string) {
	if len(m.saved) > 0 && len(m.live) < mostLive {
		cp := pick(m.rng, m.saved)
		m.compare(m.spawned(cp), "spawned from "+cp, m.saved[cp].state)
	}
}

func (m *model) spawned(cp string) string {
	m.t.Helper()
	res, err := m.api.SpawnCheckpoint(m.t.Context(), cp, client.SpawnRequest{})
	if err != nil {
		m.t.Fatalf("spawning from %s: %v", cp, err)
	}
	return res.ID
}

func (m *model) fork(id string) {
	if len(m.live) == mostLive {
		return
	}
	n := 1 + m.rng.IntN(mostLive-len(m.live))
	res, err := m.api.ForkSandbox(m.t.Context(), id, client.SpawnRequest{Count: n})
	if err != nil || len(res.Sandboxes) != n {
		m.t.Fatalf("forking %s: %d, %v", id, len(res.Sandboxes), err)
	}
	m.keep(res.Checkpoint.ID, saved{state: m.live[id], sandbox: id})
	for _, sb := range res.Sandboxes {
		m.compare(sb.ID, "forked from "+id, m.saved[res.Checkpoint.ID].state)
	}
}

func (m *model) delete(string) {
	if len(m.saved) > 1 {
		m.drop(pick(m.rng, m.saved))
	}
}

func (m *model) drop(cp string) {
	m.t.Helper()
	c, err := m.api.WaitCheckpoint(m.t.Context(), cp)
	if err != nil || c.Status != client.CheckpointReady {
		m.t.Fatalf("%s is %s %s: %v", cp, c.Status, c.ErrorMsg, err)
	}
	must(m.t, m.api.DeleteCheckpoint(m.t.Context(), c.SandboxID, cp))
	delete(m.saved, cp)
}

func (m *model) collect(string) {
	swept, err := m.api.CollectStore(m.t.Context(), client.StoreGCRequest{}, nil)
	if err != nil || swept.Unknown > 0 {
		m.t.Errorf("collecting: %+v, %v", swept, err)
	}
}

func (m *model) kill(id string) {
	if len(m.live) > 1 {
		if !m.live[id].running {
			m.compare(id, "at its end", m.live[id])
		}
		must(m.t, m.api.KillSandbox(m.t.Context(), id))
		delete(m.live, id)
	}
}

// finish compares everything that there is, and takes it away.
func (m *model) finish() {
	for _, id := range slices.Sorted(maps.Keys(m.live)) {
		m.compare(id, "at the end", m.live[id])
		must(m.t, m.api.KillSandbox(m.t.Context(), id))
	}
	sound(m.t, m.s)
	for _, cp := range slices.Sorted(maps.Keys(m.saved)) {
		id := m.spawned(cp)
		m.compare(id, "spawned at the end from "+cp, m.saved[cp].state)
		must(m.t, m.api.KillSandbox(m.t.Context(), id))
		m.drop(cp)
	}
	await(m.t, "nothing is left in the store", func() bool {
		m.collect("")
		left, err := m.api.CheckStore(m.t.Context(), client.StoreCheckRequest{}, nil)
		must(m.t, err)
		return left.Checkpoints == 0 && left.Packs == 0 && left.Leftovers == 0
	})
}
