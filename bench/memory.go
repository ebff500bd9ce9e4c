// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// memoryOf adds up the memory of the processes of dir, in bytes: their private
// and file pages, shared ones in parts (PSS), and all that their memory files
// hold. The latter are the guests' memory, which is loaded before anybody maps
// it, so that counting mapped pages would miss it.
func memoryOf(dir string) (total int64, err error) {
	pids, err := processesOf(dir)
	if err != nil {
		return 0, err
	}
	files := map[uint64]int64{}
	for _, pid := range pids {
		pss, err := privateMemory(pid)
		if err == nil {
			err = memoryFiles(pid, files)
		}
		if err != nil && !gone(err) {
			return 0, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		total += pss
	}
	for _, bytes := range files {
		total += bytes
	}
	return total, nil
}

// gone tells whether the process ended while it was looked at.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// privateMemory is a process' proportional share of anonymous memory and files.
func privateMemory(pid int) (total int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		var kib int64
		if name != "Pss_Anon" && name != "Pss_File" {
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
			return 0, fmt.Errorf("%s is %q: %w", name, rest, err)
		}
		total += kib << 10
	}
	return total, nil
}

// memoryFiles notes how much each memory file that a process has open holds, by
// its inode: several processes share one.
func memoryFiles(pid int, files map[uint64]int64) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		name := dir + "/" + e.Name()
		if to, err := os.Readlink(name); err != nil || !strings.HasPrefix(to, "/memfd:") {
			continue // closed, or another file
		}
		var st syscall.Stat_t
		if syscall.Stat(name, &st) == nil {
			files[st.Ino] = st.Blocks * 512
		}
	}
	return nil
}

// availableMemory is what the host could still give to processes, in bytes.
func availableMemory() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("memory of the host: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("memory of the host: no MemAvailable in /proc/meminfo")
}
