// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"os"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
)

// Whoever finds a mark with another process reads what it is about, and writes what
// that one reads.
func TestMark(t *testing.T) {
	t.Parallel()
	p := engine.Process{Generation: "gn-1", Build: strings.Repeat("b", 64), Dir: "/run/x", PID: 5, StartTime: 6}
	f, err := NewMark(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := FindMark(os.Getpid(), int(f.Fd()))
	if found == nil {
		t.Fatal("it is not found")
	}
	defer found.Close()
	for _, paused := range []bool{false, true, false} {
		if err := MarkPaused(f, paused); err != nil {
			t.Fatal(err)
		}
		if got, err := IsPaused(found); err != nil || got != paused {
			t.Errorf("paused %v, it says %v, %v", paused, got, err)
		}
		if got, err := Marked(found); err != nil || got != p {
			t.Errorf("it is about %+v, %v", got, err)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if FindMark(os.Getpid(), int(null.Fd())) != nil || FindMark(os.Getpid(), 1<<20) != nil {
		t.Error("found where there is none")
	}
}
