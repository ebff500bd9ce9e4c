// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// restart stops the server and starts it again.
func restart(t *testing.T, s *harness.Server) {
	t.Helper()
	must(t, s.Down(t.Context()))
	must(t, s.Up(t.Context()))
}

// TestSandboxesOutliveTheServer restarts it under a counter, under sessions with
// and without a client, and under a spawn that still loads.
func TestSandboxesOutliveTheServer(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"load-rate": slowLoad})
	b := create(t, s, "--name", "survivor", "--metadata", "a=b")
	b.count()
	b.push("lines.py")
	quiet := b.start("python3", "lines.py", "0.02", "0")
	b.heap(100, 11)
	sum := b.heapSum()
	cp := b.checkpoint("heap")
	clone := spawn(t, s, cp)
	if s.Loading() == 0 {
		t.Error("the spawn is loaded already: this does not test its load over the restart")
	}
	before := b.counted()

	// A client that stays: it must have every line in the end.
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	follower := s.Command(ctx, "exec", b.id, "--", "python3", "lines.py", "0.02", "6000")
	var out, errs bytes.Buffer
	follower.Stdout, follower.Stderr = &out, &errs
	must(t, follower.Start())
	await(t, "the client's session runs", func() bool { return strings.Contains(oc(t, s, "exec", "list", b.id), "6000") })

	must(t, s.Down(t.Context()))
	if out := invoke(t, s, nil, "ls"); out.Code != 1 || !strings.Contains(out.Stderr, "oc up") && !strings.Contains(out.Stderr, "cannot reach") {
		t.Errorf("without a server:\n%s", out)
	}
	must(t, s.Up(t.Context()))

	if sb := b.get(); sb.Status != client.StatusRunning || sb.Name != "survivor" || sb.Metadata["a"] != "b" {
		t.Errorf("after the restart: %+v", sb)
	}
	b.countOn(10)
	ticks := b.ticks()
	if gap := longestGap(ticks, before); gap > maxPause {
		t.Errorf("the counter stood still for %v", gap)
	}
	tr := b.follow(quiet)
	tr.lines(200)
	if err := follower.Wait(); err != nil {
		t.Errorf("the client that stayed: %v\n%s", err, errs.String())
	}
	checkLines(t, out.Bytes())
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 6000 {
		t.Errorf("the client that stayed has %d of 6000 lines\n%s", n, errs.String())
	}
	if got := clone.heapSum(); got != sum {
		t.Errorf("the heap of the clone is %s, not %s", got, sum)
	}
	clone.countOn(5)
	clone.checkpoint("after")
	b.restore(cp)
	b.countOn(5)
}

// Whoever dies, a session's output is whole for a client that stays and for one that
// comes later; where server and keeper are both gone, the session goes on in a
// generation that was made of the one before.
func TestSessionsOutliveAKill(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	b := create(t, s)
	b.push("lines.py")
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	const lines = 3000
	follower := s.Command(ctx, "exec", b.id, "--", "python3", "lines.py", "0.005", strconv.Itoa(lines))
	var out, errs bytes.Buffer
	follower.Stdout, follower.Stderr = &out, &errs
	must(t, follower.Start())
	await(t, "the client's session runs", func() bool { return strings.Contains(oc(t, s, "exec", "list", b.id), strconv.Itoa(lines)) })
	session := b.start("python3", "lines.py", "0.01", "0")
	seen := 0
	for _, roles := range [][]string{{"serve"}, {"keeper"}, {"serve", "keeper"}} {
		crashRoles(t, s, roles...)
		if slices.Contains(roles, "serve") {
			must(t, s.Up(t.Context()))
		}
		tr := b.follow(session)
		tr.lines(seen + 100) // more than there were, and all of them
		seen = bytes.Count(tr.data, []byte("\n"))
	}
	if err := follower.Wait(); err != nil {
		t.Errorf("the client that stayed: %v\n%s", err, errs.String())
	}
	checkLines(t, out.Bytes())
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != lines {
		t.Errorf("the client that stayed has %d of %d lines\n%s", n, lines, errs.String())
	}
}

// TestOneServerPerDataDirectory starts a second one beside the first, and oc up
// again.
func TestOneServerPerDataDirectory(t *testing.T) {
	t.Parallel()
	if text := oc(t, shared, "up"); !strings.Contains(text, shared.URL) || !strings.Contains(text, "already") {
		t.Errorf("oc up beside a server: %s", text)
	}
	if again := asJSON[struct {
		Up, Already bool
		PID         int
		APIURL      string `json:"apiUrl"`
	}](t, shared, "up"); !again.Up || !again.Already || again.PID == 0 || again.APIURL != shared.URL {
		t.Errorf("as JSON: %+v", again)
	}
	refused(t, shared, 1, []string{shared.Data, "in use", "oc down"}, "serve", "--listen", "127.0.0.1:0")
}

// TestStatusSaysWhatIsUp reads oc status, with a server and without.
func TestStatusSaysWhatIsUp(t *testing.T) {
	t.Parallel()
	type status struct {
		Up      bool
		PID     int
		Version string
		APIURL  string `json:"apiUrl"`
		DataDir string
		Counts  map[string]int
	}
	s := ownServer(t, "", nil)
	b := create(t, s)
	b.checkpoint("one")
	st := asJSON[status](t, s, "status")
	if !st.Up || st.PID == 0 || st.Version == "" || st.APIURL != s.URL || st.DataDir != s.Data ||
		st.Counts["running"] != 1 || st.Counts["checkpoints"] != 1 || st.Counts["templates"] != 1 {
		t.Errorf("%+v", st)
	}
	for _, want := range []string{"OpenComputer is up", s.URL, s.Data} {
		if text := oc(t, s, "status"); !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	must(t, s.Down(t.Context()))
	if st := asJSON[status](t, s, "status"); st.Up || st.PID != 0 {
		t.Errorf("when it is down: %+v", st)
	}
	if text := oc(t, s, "down"); !strings.Contains(text, "not up") {
		t.Errorf("oc down without a server: %s", text)
	}
	if up := asJSON[struct{ Up, Already bool }](t, s, "up"); !up.Up || up.Already {
		t.Errorf("oc up as JSON: %+v", up)
	}
	type down struct {
		Up, Stopped bool
		Killed      *int
	}
	if d := asJSON[down](t, s, "down"); d.Up || !d.Stopped || d.Killed != nil {
		t.Errorf("oc down as JSON: %+v", d)
	}
	if d := asJSON[down](t, s, "down", "--kill"); d.Up || d.Stopped || d.Killed == nil || *d.Killed != 1 {
		t.Errorf("oc down --kill as JSON, without a server: %+v", d)
	}
	if unit := asJSON[struct{ Path, Unit string }](t, s, "install-service", "--print"); !strings.HasSuffix(unit.Path, ".service") || !strings.Contains(unit.Unit, s.Data) {
		t.Errorf("oc install-service --print as JSON: %+v", unit)
	}
}

// TestKeysOpenTheirOrgOnly makes keys of two orgs, and revokes one.
func TestKeysOpenTheirOrgOnly(t *testing.T) {
	t.Parallel()
	type key struct{ ID, Key, Name, OrgID, KeyPrefix string }
	b := create(t, shared)
	cp := b.checkpoint("mine")
	other := asJSON[key](t, shared, "key", "create", "--org", "other", "--name", "laptop")
	if !regexp.MustCompile(`^osb_[0-9a-f]{64}$`).MatchString(other.Key) {
		t.Fatalf("the key is %q", other.Key)
	}
	second := oc(t, shared, "key", "create", "--org", "other")
	foreign := func(args ...string) []string { return append([]string{"--api-key", other.Key}, args...) }

	// Everything of another org is unknown: 404, exit code 3.
	for _, args := range [][]string{
		{"get", b.id}, {"kill", b.id}, {"set-timeout", b.id, "5"}, {"exec", b.id, "--", "true"}, {"exec", "list", b.id},
		{"exec", "kill", b.id, "se-1"}, {"push", b.id, testdata(t, "lines.py"), "x"}, {"pull", b.id, "/etc/passwd", filepath.Join(t.TempDir(), "x")},
		{"checkpoint", "create", b.id, "--name", "x"}, {"checkpoint", "list", b.id}, {"checkpoint", "restore", b.id, cp},
		{"checkpoint", "spawn", cp}, {"fork", b.id}, {"checkpoint", "tree", b.id},
	} {
		refused(t, shared, 3, []string{"not found"}, foreign(args...)...)
	}
	oc(t, shared, foreign("checkpoint", "delete", b.id, cp)...) // 404 counts as done
	if list := oc(t, shared, "checkpoint", "list", b.id); !strings.Contains(list, cp) {
		t.Errorf("another org deleted the checkpoint: %s", list)
	}
	for _, args := range [][]string{{"ls"}, {"checkpoint", "tree"}, {"template", "list"}} {
		if text := oc(t, shared, foreign(args...)...); strings.Contains(text, b.id) || strings.Contains(text, cp) {
			t.Errorf("oc %v shows things of another org:\n%s", args, text)
		}
	}
	b.answers()

	if list := asJSON[[]struct{ Org string }](t, shared, "key", "list", "--org", "other"); len(list) != 2 || list[0].Org != "other" {
		t.Errorf("oc key list --org other: %+v", list)
	}
	if list := oc(t, shared, "key", "list"); !strings.Contains(list, "other") || !strings.Contains(list, "laptop") || strings.Contains(list, other.Key) {
		t.Errorf("oc key list:\n%s", list)
	}
	oc(t, shared, "key", "revoke", other.ID)
	refused(t, shared, 3, []string{"invalid API key"}, foreign("ls")...)
	oc(t, shared, "--api-key", second, "ls")
	for _, err := range []error{leaked(shared.Data, other.Key), leaked(shared.Data, second)} {
		if err != nil {
			t.Error(err)
		}
	}
}

// leaked says where a key stands in clear in the metadata or the log.
func leaked(data, key string) error {
	for _, name := range []string{"meta.db", "meta.db-wal", "server.log"} {
		b, err := os.ReadFile(filepath.Join(data, name))
		if err == nil && bytes.Contains(b, []byte(key)) {
			return fmt.Errorf("a key is in %s in clear", name)
		}
	}
	return nil
}

// TestDataDirectoryCanMove stops a server, moves its data and starts one there.
func TestDataDirectoryCanMove(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	b := create(t, s)
	b.count()
	b.sh("echo kept >note")
	cp := b.checkpoint("before the move")
	b.countOn(10)
	ticks := b.ticks()
	oc(t, s, "kill", b.id)
	must(t, s.Stop())

	moved, err := s.Move()
	must(t, err)
	t.Cleanup(func() {
		if err := moved.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, moved.Up(t.Context()))
	clone := spawn(t, moved, cp)
	clone.countOn(10)
	if n := common(ticks, clone.ticks()); n == 0 || n >= len(ticks) {
		t.Errorf("the clone has %d of the source's %d numbers", n, len(ticks))
	}
	if got := clone.sh("cat note"); got != "kept" {
		t.Errorf("the note says %q", got)
	}
	next := clone.checkpoint("after the move")
	fresh := create(t, moved)
	fresh.restore(next)
	fresh.countOn(10)
}

// TestFirstKeyOutlivesAFailedStart starts a new server where another one listens,
// and then elsewhere: its user has a key that works.
func TestFirstKeyOutlivesAFailedStart(t *testing.T) {
	t.Parallel()
	taken := strings.TrimPrefix(shared.URL, "http://")
	s, err := harness.New("", harness.Settings{"listen": taken})
	must(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	refused(t, s, 1, []string{"cannot listen on " + taken, "choose another --listen"}, "up")
	must(t, s.Set("listen", "127.0.0.1:0"))
	must(t, s.Up(t.Context()))
	if list := oc(t, s, "ls"); !strings.Contains(list, "No sandboxes found.") {
		t.Errorf("oc ls: %s", list)
	}
}

// TestUpWhileTheServerDies starts a server beside one that is there and does not
// answer any more: it is waited for, and replaced when it is gone.
func TestUpWhileTheServerDies(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	old := running(s, "serve")[0]
	must(t, syscall.Kill(old, syscall.SIGSTOP))
	done := make(chan error, 1)
	go func() { done <- s.Up(context.WithoutCancel(t.Context())) }()
	await(t, "another oc looks for the server", func() bool { return len(running(s, "up")) == 1 })
	select {
	case err := <-done:
		t.Errorf("a server that does not answer is up: %v", err)
	case <-time.After(time.Second):
	}
	must(t, syscall.Kill(old, syscall.SIGKILL))
	must(t, <-done)
	if now := running(s, "serve"); len(now) != 1 || now[0] == old {
		t.Errorf("servers %v, before %d", now, old)
	}
	oc(t, s, "ls")
}
