// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"cmp"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencomputer/oc/internal/engine/gvisor/disk"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/shape"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/pager"
)

// memoryMark is how the engine names the file of its guest's memory.
const memoryMark = "memfd:runsc-memory"

// maxStubs bounds how many processes' maps are read.
const maxStubs = 256

// How much that its guest never touched is made present, in bytes: a guest may have
// any amount of it, and until the engine has given it back it is memory of this
// machine. touchedNow is for a capture, touchedAhead for one that may come: a Go
// program's runtime has 12 MB of it, and the agent is one.
const (
	touchedNow   = 64 << 20
	touchedAhead = 32 << 20
)

// touchable is how much that is for a guest, at most: with what it has, no more than
// it may have, because what it writes to then is not counted as its own.
func touchable(t wire.Target, most int64) int64 {
	s, err := shape.Read(t.Dir)
	if err != nil {
		return 0
	}
	return max(0, min(most, s.MemoryBytes-disk.MemoryUsage(t.PID)))
}

// warm does before the pause what page faults would do in it: it has the mapping of
// the guest's memory populated, and makes the engine's scan for zero pages cheap.
// Allocating 2 MB at a time, the engine leaves pages that its guest never
// touched, and inside the pause it reads each of them, which faults it in, a
// millisecond per megabyte (pgalloc MemoryFile.SaveTo). Here they are faulted in
// through the mapping, so that the scan finds them in the page cache,
// sixteen to a fault. The engine gives them back. What the guest has allocated is seen
// from what its stubs have mapped. All of this is an optimisation: it does what
// it can and reports nothing.
func warm(t wire.Target, m *pager.Mapping) {
	var ranges []pager.Extent
	var wg sync.WaitGroup
	wg.Go(func() { ranges = merged(mappedRanges(t.PID)) })
	has := m.Populate()
	wg.Wait()
	m.Touch(untouched(has, ranges, touchable(t, touchedNow)))
}

// ahead does again, at leisure, what the last capture has undone of warm: the engine
// gave the pages back, and the next capture may come.
func ahead(t wire.Target, m *pager.Mapping) (stop func()) {
	return m.TouchLater(func() iter.Seq2[int64, int64] {
		return untouched(m.Extents(), merged(mappedRanges(t.PID)), touchable(t, touchedAhead))
	})
}

// untouched are the parts of ranges that a file has no pages for, at most so many
// bytes of them. What it has is in order, and the ranges are.
func untouched(has, ranges []pager.Extent, most int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		for _, r := range ranges {
			for from := r.Start; from < r.End; {
				for len(has) > 0 && has[0].End <= from {
					has = has[1:]
				}
				to, next := r.End, r.End
				if len(has) > 0 && has[0].Start < r.End {
					to, next = max(from, has[0].Start), min(has[0].End, r.End)
				}
				to = min(to, from+most)
				if most -= to - from; to > from && !yield(from, to) || most == 0 {
					return
				}
				from = next
			}
		}
	}
}

// mapMemory maps the guest's memory; nil where that cannot be.
func mapMemory(enginePID int) *pager.Mapping {
	f := memoryFile(enginePID)
	if f == nil {
		return nil
	}
	m, err := pager.Map(f)
	if err != nil {
		return nil
	}
	return m
}

// memoryFile opens the file of the guest's memory, nil where it is not found.
func memoryFile(pid int) *os.File {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range es {
		name := filepath.Join(dir, e.Name())
		if l, err := os.Readlink(name); err == nil && strings.Contains(l, memoryMark) {
			if f, err := os.Open(name); err == nil {
				return f
			}
		}
	}
	return nil
}

// mappedRanges are the parts of the memory file that the engine's stub
// processes have mapped.
func mappedRanges(enginePID int) (spans []pager.Extent) {
	for _, pid := range proc.Descendants(enginePID, maxStubs) {
		f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			continue // gone meanwhile
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if s, ok := parseMapping(sc.Text()); ok {
				spans = append(spans, s)
			}
		}
		_ = f.Close() // read only
	}
	return spans
}

// parseMapping reads a line of /proc/PID/maps that maps the memory file
// (proc_pid_maps(5): address range, permissions, offset, device, inode, name).
func parseMapping(line string) (s pager.Extent, ok bool) {
	w := strings.Fields(line)
	if len(w) < 6 || !strings.Contains(w[5], memoryMark) {
		return s, false
	}
	from, to, _ := strings.Cut(w[0], "-")
	a, err1 := strconv.ParseUint(from, 16, 63)
	b, err2 := strconv.ParseUint(to, 16, 63)
	off, err3 := strconv.ParseInt(w[2], 16, 64)
	const most = 1 << 50
	if err1 != nil || err2 != nil || err3 != nil || b <= a || off < 0 || off > most || b-a > most {
		return s, false
	}
	return pager.Extent{Start: off, End: off + int64(b-a)}, true
}

// merged joins spans that overlap or touch.
func merged(spans []pager.Extent) (out []pager.Extent) {
	slices.SortFunc(spans, func(a, b pager.Extent) int { return cmp.Compare(a.Start, b.Start) })
	for _, s := range spans {
		if n := len(out); n > 0 && s.Start <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, s.End)
			continue
		}
		out = append(out, s)
	}
	return out
}
