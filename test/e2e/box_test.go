// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

const (
	commandTime = 2 * time.Minute
	awaitTime   = time.Minute
	awaitPoll   = 50 * time.Millisecond
)

// invoke runs oc to its end, whatever that is.
func invoke(t testing.TB, s *harness.Server, stdin io.Reader, args ...string) harness.Output {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	out, err := s.Run(ctx, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// oc runs oc, which must succeed, and gives what it printed.
func oc(t testing.TB, s *harness.Server, args ...string) string {
	t.Helper()
	out := invoke(t, s, nil, args...)
	if out.Code != 0 {
		t.Fatal(out)
	}
	return strings.TrimSpace(out.Stdout)
}

// asJSON runs oc with --json, which must succeed, and gives what it printed.
func asJSON[T any](t testing.TB, s *harness.Server, args ...string) T {
	t.Helper()
	var v T
	text := oc(t, s, append(slices.Clone(args), "--json")...)
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("oc %s --json: %v\n%s", strings.Join(args, " "), err, text)
	}
	return v
}

// refused runs oc, which must fail with an exit code and a message that holds
// each of the texts.
func refused(t testing.TB, s *harness.Server, code int, texts []string, args ...string) {
	t.Helper()
	out := invoke(t, s, nil, args...)
	if out.Code != code {
		t.Errorf("exit code %d, want %d:\n%s", out.Code, code, out)
	}
	for _, text := range append(texts, "Error: ") {
		if !strings.Contains(out.Stderr, text) {
			t.Errorf("no %q in the message:\n%s", text, out)
		}
	}
}

// await waits until a condition holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	awaitFor(t, awaitTime, what, cond)
}

func awaitFor(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", limit, what)
		}
		<-time.After(awaitPoll)
	}
}

// api calls the API of a server with its first key.
func api(t testing.TB, s *harness.Server) *client.Client {
	t.Helper()
	c, err := s.Client(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// box is a sandbox.
type box struct {
	t  testing.TB
	s  *harness.Server
	id string
}

// create makes a sandbox, small and without a timeout unless the flags say
// otherwise. It ends with the test.
func create(t testing.TB, s *harness.Server, flags ...string) box {
	t.Helper()
	args := append([]string{"create", "--template", "small", "--memory", "512", "--timeout", "0"}, flags...)
	return adopt(t, s, asJSON[client.Sandbox](t, s, args...).ID)
}

// adopt makes a box of a sandbox that exists.
func adopt(t testing.TB, s *harness.Server, id string) box {
	t.Helper()
	if !strings.HasPrefix(id, "sb-") {
		t.Fatalf("%q is not a sandbox's id", id)
	}
	if s == shared { // another one is closed with all that it has
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), commandTime) // t's own has ended
			defer cancel()
			if out, err := s.Run(ctx, nil, "kill", id); err != nil || out.Code != 0 {
				t.Errorf("killing %s: %v\n%s", id, err, out)
			}
		})
	}
	return box{t, s, id}
}

// spawn makes a sandbox from a checkpoint.
func spawn(t testing.TB, s *harness.Server, cp string, flags ...string) box {
	t.Helper()
	args := append([]string{"checkpoint", "spawn", cp, "--timeout", "0"}, flags...)
	return adopt(t, s, asJSON[client.Sandbox](t, s, args...).ID)
}

// spawnMany makes n sandboxes at once.
func spawnMany(t testing.TB, s *harness.Server, cp string, n int) []box {
	t.Helper()
	res, err := api(t, s).SpawnCheckpoint(t.Context(), cp, client.SpawnRequest{Count: n})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.All()) != n {
		t.Fatalf("%d sandboxes were made instead of %d", len(res.All()), n)
	}
	var boxes []box
	for _, sb := range res.All() {
		boxes = append(boxes, adopt(t, s, sb.ID))
	}
	return boxes
}

// exec runs a command, whatever its end.
func (b box) exec(argv ...string) harness.Output {
	b.t.Helper()
	return invoke(b.t, b.s, nil, append([]string{"exec", b.id, "--"}, argv...)...)
}

// sh runs a shell script, which must succeed, and gives what it printed.
func (b box) sh(script string) string {
	b.t.Helper()
	return oc(b.t, b.s, "exec", b.id, "--", "bash", "-c", script)
}

// root is sh as root.
func (b box) root(script string) string {
	b.t.Helper()
	return oc(b.t, b.s, "exec", b.id, "--user", "root", "--", "bash", "-c", script)
}

// push copies a file of testdata into the home.
func (b box) push(file string) {
	b.t.Helper()
	oc(b.t, b.s, "push", b.id, testdata(b.t, file), file)
}

// start leaves a command running, and gives its session.
func (b box) start(argv ...string) string {
	b.t.Helper()
	args := append([]string{"exec", b.id, "--detach", "--json", "--"}, argv...)
	var session client.ExecSession
	if err := json.Unmarshal([]byte(oc(b.t, b.s, args...)), &session); err != nil {
		b.t.Fatal(err)
	}
	return session.SessionID
}

// checkpoint makes a checkpoint, and gives its id.
func (b box) checkpoint(name string) string {
	b.t.Helper()
	cp := asJSON[client.Checkpoint](b.t, b.s, "checkpoint", "create", b.id, "--name", name)
	if cp.Status != client.CheckpointReady {
		b.t.Fatalf("checkpoint %s is %s", cp.ID, cp.Status)
	}
	return cp.ID
}

func (b box) restore(cp string) {
	b.t.Helper()
	oc(b.t, b.s, "checkpoint", "restore", b.id, cp)
}

func (b box) get() client.Sandbox {
	b.t.Helper()
	return asJSON[client.Sandbox](b.t, b.s, "get", b.id)
}

// answers checks that the sandbox serves a command soon.
func (b box) answers() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 15*time.Second)
	defer cancel()
	out, err := b.s.Run(ctx, nil, "exec", b.id, "--", "echo", "here")
	if err != nil || out.Code != 0 || out.Stdout != "here\n" {
		b.t.Errorf("%s does not answer: %v\n%s", b.id, err, out)
	}
}
