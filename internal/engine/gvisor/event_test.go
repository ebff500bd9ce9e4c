// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bytes"
	"io"
	"log/slog"
	"os/exec"
	"testing"

	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
)

// saying is a helper that says so much and ends.
func saying(out []byte) *helperProc {
	return &helperProc{cmd: exec.Command("none"), stdin: nowhere{}, stdout: io.NopCloser(bytes.NewReader(out)), stderr: &limited{}}
}

type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) Close() error                { return nil }

// talk adds what helpers say to a fuzz test.
func talk(f *testing.F) {
	for _, out := range []string{
		`{"event":"done","sizes":{"State":7}}`,
		`{"event":"begun"}{"event":"ready"}{"event":"done","error":"x","fault":{"kind":"damaged","message":"m"}}`,
		`{"event":"ready"}{"event":"ready"}`,
		`{"event":"running","target":1}` + "\n" + `{"event":"lost","target":0,"error":"x"}{"event":"loaded","target":1}`,
		`{"event":"done","command":3}{"event":"lost","target":-1}{"event":"lost","target":99}`,
		`{"event":1}`, `[`, ``,
	} {
		f.Add([]byte(out))
	}
}

// Whatever a helper says, whoever asked has an answer or an error, is asked once at
// most, and can end it.
func FuzzAnswer(f *testing.F) {
	talk(f)
	f.Fuzz(func(t *testing.T, out []byte) {
		d := &Driver{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
		asked := 0
		_, end, err := d.converse(t.Context(), saying(out), wire.Request{Verb: wire.VerbCapture, Ask: true}, func() error {
			asked++
			return nil
		})
		if asked > 1 {
			t.Errorf("asked %d times", asked)
		}
		if end == nil {
			t.Fatalf("nobody ends it: %v", err)
		}
		end()
	})
}

// Whatever the helper of a restore says, each target is settled when it has ended, and
// who waits for an answer has one.
func FuzzRestoreEvents(f *testing.F) {
	talk(f)
	f.Fuzz(func(t *testing.T, out []byte) {
		const targets = 2
		r := &restoring{
			helperProc: saying(out), running: make([]chan struct{}, targets), loaded: make(chan struct{}),
			state: make([]targetState, targets), errs: make([]error, targets), replies: map[int]chan error{},
		}
		for i := range r.running {
			r.running[i] = make(chan struct{})
		}
		reply := make(chan error, 1)
		r.replies[3] = reply
		r.events()
		if len(reply) == 0 {
			t.Error("who gave a command waits for ever")
		}
		for _, ch := range append(r.running, r.loaded) {
			select {
			case <-ch:
			default:
				t.Error("who waits for a target waits for ever")
			}
		}
	})
}
