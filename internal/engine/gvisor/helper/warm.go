// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/pager"
)

// memoryMark is how the engine names the file of its guest's memory.
const memoryMark = "memfd:runsc-memory"

// maxStubs bounds how many processes' maps are read.
const maxStubs = 256

// warm does before the pause what page faults would do in it: it has the arena
// map the guest's memory, and makes the engine's scan for zero pages cheap.
// Allocating 2 MB at a time, the engine leaves pages that its guest never
// touched, and inside the pause it reads each of them, which faults it in, a
// millisecond per megabyte (pgalloc MemoryFile.SaveTo). Here they are faulted in
// through the arena's mapping, so that the scan finds them in the page cache,
// sixteen to a fault. The engine gives them back. What the guest has allocated is seen
// from what its stubs have mapped. All of this is an optimisation: it does what
// it can and reports nothing.
func warm(enginePID int, arena *pager.Arena) {
	f := memoryFile(enginePID)
	if f == nil {
		return
	}
	defer f.Close()
	mem, err := arena.Know(f)
	if err != nil {
		return
	}
	for _, r := range merged(mappedRanges(enginePID)) {
		for _, hole := range holes(f, r) {
			if hole.end <= int64(len(mem)) {
				_ = unix.Madvise(mem[hole.start:hole.end], unix.MADV_POPULATE_READ)
			}
		}
	}
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

// span is a range of the memory file.
type span struct{ start, end int64 }

// mappedRanges are the parts of the memory file that the engine's stub
// processes have mapped.
func mappedRanges(enginePID int) (spans []span) {
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
func parseMapping(line string) (s span, ok bool) {
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
	return span{off, off + int64(b-a)}, true
}

// merged joins spans that overlap or touch.
func merged(spans []span) (out []span) {
	slices.SortFunc(spans, func(a, b span) int { return int(min(max(a.start-b.start, -1), 1)) })
	for _, s := range spans {
		if n := len(out); n > 0 && s.start <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}

// holes are the parts of a range that the file has no pages for.
func holes(f *os.File, r span) (out []span) {
	for off := r.start; off < r.end; {
		hole, err := unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE)
		if err != nil || hole >= r.end {
			return out
		}
		data, err := unix.Seek(int(f.Fd()), hole, unix.SEEK_DATA)
		if err != nil { // nothing behind it
			data = r.end
		}
		end := min(data, r.end)
		out = append(out, span{hole, end})
		off = end
	}
	return out
}
