// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestWorkload(t *testing.T) {
	t.Parallel()
	w := &workload{}
	dir := t.TempDir()
	empty := do(t, w, "sum")
	if out, err := w.do([]string{"change", "1"}); err == nil {
		t.Errorf("a change of nothing is answered by %q", out)
	}
	do(t, w, "fill", "1")
	full := do(t, w, "sum")
	if full == empty || do(t, w, "sum") != full {
		t.Errorf("checksums %q, then %q", empty, full)
	}
	before := slices.Clone(w.memory)
	do(t, w, "change", "3")
	if n := changedPages(before, w.memory); n != 7 {
		t.Errorf("%d of 256 pages changed, not 7", n)
	}
	do(t, w, "files", dir, "1001")
	for _, name := range []string{"0/0", "0/999", "1/0"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() != fileBytes {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	for _, bad := range [][]string{nil, {"fill", "1"}, {"fill", "-1"}, {"files", dir, "x"}, {"gap"}, {"change", "0"}, {"change", "101"}, {"dance"}} {
		if out, err := w.do(bad); err == nil {
			t.Errorf("%q is answered by %q", bad, out)
		}
	}
}

func changedPages(a, b []byte) (n int) {
	for at := 0; at < len(a); at += pageBytes {
		if !bytes.Equal(a[at:at+pageBytes], b[at:at+pageBytes]) {
			n++
		}
	}
	return n
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
