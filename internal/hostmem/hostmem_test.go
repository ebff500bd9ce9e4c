// SPDX-License-Identifier: Apache-2.0

package hostmem

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree writes files below a new directory and gives it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const meminfo = "MemTotal:       24000 kB\nMemFree:         1000 kB\nMemAvailable:   10000 kB\nHugePages_Total:       0\n"

func TestGroupsBoundTheMachine(t *testing.T) {
	t.Parallel()
	machine := Memory{24000 << 10, 10000 << 10}
	for name, c := range map[string]struct {
		files map[string]string
		want  Memory
	}{
		"no group": {nil, machine},
		"v2 without a limit": {map[string]string{
			"a/b/memory.max": "max\n", "a/b/memory.current": "5000\n",
		}, machine},
		"v2, the group itself": {map[string]string{
			"a/b/memory.max": "9000\n", "a/b/memory.current": "5000\n", "a/b/memory.stat": "anon 4000\ninactive_file 500\nactive_file 200\n",
		}, Memory{9000, 4700}},
		"v2, its parent is stricter": {map[string]string{
			"a/b/memory.max": "9000\n", "a/b/memory.current": "5000\n",
			"a/memory.max": "8000\n", "a/memory.current": "7999\n",
		}, Memory{8000, 1}},
		"v2, used up": {map[string]string{
			"a/b/memory.max": "9000\n", "a/b/memory.current": "9500\n",
		}, Memory{9000, 0}},
		"v1": {map[string]string{
			"a/memory.limit_in_bytes": "8192\n", "a/memory.usage_in_bytes": "8192\n",
			"a/memory.stat": "inactive_file 1\nactive_file 1\ntotal_inactive_file 90\ntotal_active_file 2\n",
		}, Memory{8192, 92}},
		"v1 without a limit": {map[string]string{
			"a/memory.limit_in_bytes": "9223372036854771712\n", "a/memory.usage_in_bytes": "8192\n",
		}, machine},
		"a group that goes away": {map[string]string{"a/b/memory.max": "9000\n"}, machine},
	} {
		dir := tree(t, c.files)
		info := filepath.Join(tree(t, map[string]string{"meminfo": meminfo}), "meminfo")
		got, err := read(info, []string{filepath.Join(dir, "a", "b"), filepath.Join(dir, "missing", "x")})
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

func TestThisMachine(t *testing.T) {
	t.Parallel()
	m, err := Within()()
	if err != nil || m.Available <= 0 || m.Total < m.Available {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestReserve(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ total, set, want int64 }{
		{1 << 30, 0, 512 << 20}, {100 << 30, 0, 5 << 30}, {100 << 30, 7, 7},
	} {
		if got := (Memory{Total: c.total}).Reserve(c.set); got != c.want {
			t.Errorf("of %d, set to %d: %d", c.total, c.set, got)
		}
	}
}

func TestMeminfoThatIsNone(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotal: -1 kB\nMemAvailable: 1 kB\n",
		"MemTotal: 9223372036854775807 kB\nMemAvailable: 1 kB\n"} {
		if m, err := parseMeminfo(strings.NewReader(text)); err == nil {
			t.Errorf("%q: %+v", text, m)
		}
	}
	if _, err := read(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a missing file is no error")
	}
}

func FuzzMeminfo(f *testing.F) {
	f.Add([]byte(meminfo))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMeminfo(bytes.NewReader(b)); err == nil && (m.Total < 0 || m.Available < 0) {
			t.Errorf("%+v", m)
		}
	})
}
