// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSample(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		s    sample
		want string
	}{
		{nil, "–"},
		{sample{1234.5}, "1234"},
		{sample{3, 1, 2}, "2.00 (1.00–3.00)"},
		{sample{40, 10, 20, 30}, "25.0 (10.0–40.0)"},
	} {
		if got := c.s.String(); got != c.want {
			t.Errorf("%v: %q, want %q", []float64(c.s), got, c.want)
		}
	}
	var s sample
	s.addTime(1500 * time.Microsecond)
	s.addBytes(3 << 20)
	if !reflect.DeepEqual(s, sample{1.5, 3}) {
		t.Errorf("milliseconds and MiB: %v", s)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	table(&out, []row{
		{"exec", "ms", "idle", sample{5}, sample{20}},
		{"spawn", "ms", "64 MiB", sample{5}, nil},
	})
	for _, want := range []string{
		"| exec | idle | ms | 5.00 | 20.0 | 0.25 |\n",
		"| spawn | 64 MiB | ms | 5.00 | – | – |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestPromised(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	promisedTable(&out, []promise{
		{"later", "ms", sample{5}, "the first one", sample{20}, "≤ 0.15"},
		{measure: "server", unit: "MiB", ours: sample{100}, wanted: "< 300 MB"},
		{measure: "space", unit: "MiB", ours: sample{100}},
	})
	for _, want := range []string{
		"| later | ms | 5.00 | the first one: 20.0 | 0.25 | ≤ 0.15 |\n",
		"| server | MiB | 100 | – | – | < 300 MB |\n",
		"| space | MiB | 100 | – | – | – |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestStored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, size := range map[string]int{"packs/a/b": 3, "ckpt/a": 4, "engines/x": 100, "images/x": 100} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, make([]byte, size), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := storedBytes(dir); n != 7 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	var out strings.Builder
	storedTable(&out, []stored{{
		series: series{what: "a"}, added: []int64{6 << 20, 1 << 20, 3 << 20}, raw: 300 << 20, tar: 40 << 20, restic: 20 << 20,
	}})
	if want := "| a | 3 | 300 | 10.0 (6.00 + 2 × 2.00) | 40.0 | 20.0 | 0.25 | 0.50 | 0.333 |\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("no %q in\n%s", want, &out)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	o, err := parseOptions([]string{"-sizes", "idle,64,300f", "-only", "exec,spawn", "-runs", "2"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := []workload{{name: "idle"}, {name: "64 MiB", mib: 64}, {name: "300 files", files: 300}}
	if !reflect.DeepEqual(o.workloads, want) || o.runs != 2 || !o.wants("exec") || o.wants("create") {
		t.Errorf("%+v", o)
	}
	if o, err = parseOptions([]string{"-quick"}, io.Discard); err != nil || o.runs != quickRuns || len(o.workloads) != 2 {
		t.Errorf("-quick: %+v, %v", o, err)
	}
	if o.wants(dedup) || !o.wants("create") {
		t.Errorf("-quick: takes %v", o.only)
	}
	for _, bad := range [][]string{{"-sizes", "x"}, {"-sizes", "-3"}, {"-sizes", ""}, {"-only", "nothing"}, {"-wrong"}} {
		if len(bad) == 2 && bad[1] == "" {
			continue // means the default
		}
		if _, err := parseOptions(bad, io.Discard); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

// TestOkELF runs the hand-made program, here as in a sandbox.
func TestOkELF(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "ok")
	if err := os.WriteFile(file, okELF(), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), file).Output()
	if err := checkAnswer(string(out), err); err != nil {
		t.Fatal(err)
	}
}

// TestRootfs makes the archive and talks to the guest program out of it.
func TestRootfs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	archive, err := rootfs(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, "/"+h.Name)
	}
	if !reflect.DeepEqual(names, []string{guestPath, okPath}) {
		t.Errorf("the archive holds %q", names)
	}
}

// TestMemory finds a child by the directory in its command line, and its memory.
func TestMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := exec.CommandContext(t.Context(), "sh", "-c", "read line", dir)
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pids, err := processesOf(dir)
	if err != nil || !reflect.DeepEqual(pids, []int{c.Process.Pid}) {
		t.Errorf("processes %v, %v; want %d", pids, err, c.Process.Pid)
	}
	if n, err := memoryOf(dir); err != nil || n == 0 || n > 64<<20 {
		t.Errorf("memory %d, %v", n, err)
	}
	if err := errors.Join(stdin.Close(), endLeftovers(dir)); err == nil {
		_ = c.Wait() // ended by the end of its input
	}
	if _, err := availableMemory(); err != nil {
		t.Error(err)
	}
}
