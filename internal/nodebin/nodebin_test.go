// SPDX-License-Identifier: Apache-2.0

package nodebin

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		what string
		fsys fstest.MapFS
	}{
		{"not built", fstest.MapFS{"bin/README": {Data: []byte("x")}}},
		{"build cut short", fstest.MapFS{name: {}}},
	} {
		if _, err := load(tc.fsys); !errors.Is(err, ErrMissing) {
			t.Errorf("%s: %v", tc.what, err)
		}
	}
}

// TestLoadedRuns executes what was loaded.
func TestLoadedRuns(t *testing.T) {
	t.Parallel()
	program, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	f, err := load(fstest.MapFS{name: {Data: program}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := exec.CommandContext(t.Context(), fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), "from", "memory").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "from memory" {
		t.Errorf("%q, %v", out, err)
	}
}
