// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestWorkload(t *testing.T) {
	t.Parallel()
	w := &workload{}
	dir := t.TempDir()
	empty := do(t, w, "sum")
	do(t, w, "fill", "1")
	full := do(t, w, "sum")
	if full == empty || do(t, w, "sum") != full {
		t.Errorf("checksums %q, then %q", empty, full)
	}
	do(t, w, "files", dir, "1001")
	for _, name := range []string{"0/0", "0/999", "1/0"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() != fileBytes {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	for _, bad := range [][]string{nil, {"fill", "1"}, {"fill", "-1"}, {"files", dir, "x"}, {"gap"}, {"dance"}} {
		if out, err := w.do(bad); err == nil {
			t.Errorf("%q is answered by %q", bad, out)
		}
	}
}

func TestTicker(t *testing.T) {
	t.Parallel()
	w := &workload{}
	do(t, w, "tick")
	if _, err := w.do([]string{"tick"}); err == nil {
		t.Error("it ticks twice")
	}
	<-time.After(20 * time.Millisecond)
	us, err := strconv.Atoi(do(t, w, "gap"))
	if err != nil || us < 1000 {
		t.Errorf("longest tick %d µs, %v", us, err)
	}
}

func do(t *testing.T, w *workload, words ...string) string {
	t.Helper()
	out, err := w.do(words)
	if err != nil {
		t.Fatalf("%q: %v", words, err)
	}
	return out
}
