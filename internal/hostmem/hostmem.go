// SPDX-License-Identifier: Apache-2.0

// Package hostmem reads how much memory this machine has left for more.
//
// It looks at the whole machine (/proc/meminfo) and at the limits of the
// control groups that it is told, and gives the least. What is done about
// the numbers is its callers' business. It knows no other package.
package hostmem

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Memory is what there is, in bytes.
type Memory struct {
	Total     int64 // that could ever be given
	Available int64 // that can be given now without swapping, including what the kernel can take back from its caches
}

// Reserve is how much shall stay free, in bytes: what is set, or where that is
// 0 a twentieth of everything, at least 512 MB.
func (m Memory) Reserve(set int64) int64 {
	if set > 0 {
		return set
	}
	return max(m.Total/20, 512<<20)
}

// Reader reads the present state.
type Reader func() (Memory, error)

// Within gives a reader of this machine's memory within the limits of control
// groups and their parents. groups are directories of a memory hierarchy, of
// cgroup v1 or v2; those that do not exist bound nothing.
func Within(groups ...string) Reader {
	return func() (Memory, error) { return read("/proc/meminfo", groups) }
}

func read(meminfo string, groups []string) (Memory, error) {
	f, err := os.Open(meminfo)
	if err != nil {
		return Memory{}, fmt.Errorf("hostmem: %w", err)
	}
	defer f.Close()
	m, err := parseMeminfo(f)
	if err != nil {
		return Memory{}, fmt.Errorf("hostmem: %s: %w", meminfo, err)
	}
	for _, g := range groups {
		for dir := filepath.Clean(g); ; dir = filepath.Dir(dir) {
			if limit, left, ok := groupMemory(dir); ok {
				m.Total, m.Available = min(m.Total, limit), min(m.Available, left)
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return m, nil
}

// parseMeminfo reads proc_meminfo(5).
func parseMeminfo(r io.Reader) (Memory, error) {
	m := Memory{Total: -1, Available: -1}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) < 2 {
			continue
		}
		field := map[string]*int64{"MemTotal:": &m.Total, "MemAvailable:": &m.Available}[w[0]]
		if field == nil {
			continue
		}
		kib, err := strconv.ParseInt(w[1], 10, 64)
		if err != nil || kib < 0 || kib > math.MaxInt64>>10 {
			return Memory{}, fmt.Errorf("%q is no amount of memory", sc.Text())
		}
		*field = kib << 10
	}
	if err := sc.Err(); err != nil {
		return Memory{}, err
	}
	if m.Total < 0 || m.Available < 0 {
		return Memory{}, errors.New("MemTotal or MemAvailable is missing")
	}
	return m, nil
}

// groupMemory is the limit of one control group, and what is left of it. Its
// page cache of files can be taken back, and counts as left as it does for
// MemAvailable. ok is false where there is no limit.
func groupMemory(dir string) (limit, left int64, ok bool) {
	for _, v := range []struct{ limit, usage, cache string }{
		{"memory.max", "memory.current", ""},
		{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_"},
	} {
		limit, err := number(filepath.Join(dir, v.limit))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		usage, err2 := number(filepath.Join(dir, v.usage))
		if err != nil || err2 != nil { // "max", or the group has just gone
			return 0, 0, false
		}
		cache := stat(filepath.Join(dir, "memory.stat"), v.cache+"inactive_file", v.cache+"active_file")
		return limit, max(0, limit-usage+cache), true
	}
	return 0, 0, false
}

func number(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// stat sums up fields of a memory.stat file; those that are not there are 0.
func stat(path string, fields ...string) (sum int64) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if w := strings.Fields(line); len(w) == 2 && slices.Contains(fields, w[0]) {
			n, _ := strconv.ParseInt(w[1], 10, 64) // the kernel's own
			sum += max(0, n)
		}
	}
	return sum
}
