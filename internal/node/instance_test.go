// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

func TestInstance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if i, err := FindInstance(dir); i != nil || err != nil {
		t.Errorf("where none was: %v, %v", i, err)
	}
	if err := (Instance{Version: "v", APIURL: "http://x", DataDir: dir}).write(); err != nil {
		t.Fatal(err)
	}
	i, err := FindInstance(dir)
	if err != nil || i == nil || i.PID != os.Getpid() || i.APIURL != "http://x" || i.Version != "v" {
		t.Fatalf("%+v, %v", i, err)
	}
	path := filepath.Join(dir, instanceFile)
	again := *i
	again.StartTime++ // the pid is another process' by now
	stale, err := json.Marshal(again)
	if err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	gone, err := json.Marshal(Instance{PID: dead.Process.Pid, StartTime: i.StartTime})
	if err != nil {
		t.Fatal(err)
	}
	for what, content := range map[string]string{"stale": string(stale), "dead": string(gone), "half": `{"pid": 1`, "empty": ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if i, err := FindInstance(dir); i != nil || err != nil {
			t.Errorf("%s: %v, %v", what, i, err)
		}
	}
}

// Two servers never share a data directory, and the second one says with whom.
func TestLock(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "data")
	f, err := lockData(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockData(dir, 0); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "another process") || fault.As(err).Hint == "" {
		t.Errorf("a second lock: %v", err)
	}
	if err := (Instance{DataDir: dir}).write(); err != nil {
		t.Fatal(err)
	}
	if _, err := lockData(dir, 0); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "the server with pid") {
		t.Errorf("a second lock beside a server: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, instanceFile)); err != nil {
		t.Fatal(err)
	}
	// With patience: a process that another test is starting has the descriptor
	// until it runs its program.
	again, err := lockData(dir, time.Minute)
	if err != nil {
		t.Fatalf("after the first one ended: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lockData(file, 0); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a data directory that is a file: %v", err)
	}
}

// A refused second server is a clean error, and changes nothing.
func TestOpenRefusesASecond(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := lockData(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (Instance{DataDir: dir}).write(); err != nil { // a server that runs
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Settings{DataDir: dir}, slog.New(slog.DiscardHandler)); !fault.Is(err, fault.Conflict) {
		t.Errorf("Open: %v", err)
	}
	es, err := os.ReadDir(dir)
	if err != nil || len(es) != 2 {
		t.Errorf("a refused server left %v, %v", es, err)
	}
}

func TestStatusOfNothing(t *testing.T) {
	t.Parallel()
	st, err := ReadStatus(t.Context(), Settings{DataDir: filepath.Join(t.TempDir(), "none")})
	if err != nil || st.Up || *st.Counts != (Counts{}) {
		t.Errorf("%+v, %v", st, err)
	}
}

// A lock whose server is no more is tried until it is free.
func TestLockOfADyingServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old, err := lockData(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	type locked struct {
		f   *os.File
		err error
	}
	done := make(chan locked, 1)
	go func() {
		f, err := lockData(dir, time.Minute)
		done <- locked{f, err}
	}()
	select {
	case l := <-done:
		t.Fatalf("while it is held: %v", l.err)
	case <-time.After(10 * lockPoll):
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	l := <-done
	if l.err != nil {
		t.Fatalf("after it was given up: %v", l.err)
	}
	if err := l.f.Close(); err != nil {
		t.Error(err)
	}
}
