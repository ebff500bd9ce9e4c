// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// processesOf gives the processes whose command line names dir, and all their
// descendants: servers, engines, gofers, pagers, and the engines' stubs, which
// have no command line.
func processesOf(dir string) ([]int, error) {
	es, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("processes: %w", err)
	}
	parents, wanted := map[int]int{}, map[int]bool{os.Getpid(): false}
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // gone
		}
		// Behind the name in parentheses: state, parent (proc_pid_stat(5)).
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 2 || f[0] == "Z" {
			continue
		}
		parents[pid], _ = strconv.Atoi(f[1])
		line, _ := commandLine(pid) // gone: names nothing
		if _, known := wanted[pid]; !known && strings.Contains(line, dir) {
			wanted[pid] = true
		}
	}
	var found []int
	for pid := range parents {
		for at := pid; at > 1; at = parents[at] {
			if yes, known := wanted[at]; known {
				if yes {
					found = append(found, pid)
				}
				break
			}
		}
	}
	return found, nil
}

// commandLine is that of a process, with a zero byte behind each argument.
func commandLine(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(b), err
}

// endLeftovers kills the processes of dir that are still there and says so: what
// they belong to did not end them.
func endLeftovers(dir string) error {
	pids, err := processesOf(dir)
	if err != nil || len(pids) == 0 {
		return err
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // gone is as good
	}
	return fmt.Errorf("killed %d processes that were left below %s", len(pids), dir)
}
