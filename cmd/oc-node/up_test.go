// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"slices"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

// TestUpPassesItsSettingsOn wherever they stand, and none of the client's.
func TestUpPassesItsSettingsOn(t *testing.T) {
	t.Parallel()
	cmd := upCommand()
	f := cmd.Flags()
	f.Bool("json", false, "print JSON") // as the program's root has it
	if err := f.Parse([]string{"--json", "--cache", "7", "--listen=127.0.0.1:1", "--config", "/c"}); err != nil {
		t.Fatal(err)
	}
	if got, want := serveArgs(f), []string{"serve", "--cache=7", "--config=/c", "--listen=127.0.0.1:1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestUpSaysWhyInTheServersWords where it has some.
func TestUpSaysWhyInTheServersWords(t *testing.T) {
	t.Parallel()
	for logged, want := range map[string]fault.Fault{
		"level=INFO msg=x\nError: cannot listen on a\nTry: choose another --listen": {
			Message: "the server did not come up: cannot listen on a", Hint: "choose another --listen; its log is /log"},
		"Error: no": {Message: "the server did not come up: no", Hint: "see /log"},
	} {
		var got *fault.Fault
		if err := notUp(errors.New("it ended"), logged, "/log"); !errors.As(err, &got) || got.Error() != want.Message || got.Hint != want.Hint {
			t.Errorf("%q: %v (%q)", logged, err, got.Hint)
		}
	}
	if err := notUp(errors.New("it ended"), "panic: x", "/log"); err.Error() != "the server did not come up: panic: x: it ended" {
		t.Error(err)
	}
}
