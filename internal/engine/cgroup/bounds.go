// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path/filepath"
	"strings"
)

// MemoryGroups are the directories of the groups whose memory limits, and whose
// parents', bound what this process and the groups of this hierarchy can have.
func (h *Hierarchy) MemoryGroups() []string {
	root := h.roots["memory"]
	if h.v2 {
		root = h.roots[""]
	}
	groups := []string{filepath.Join(root, h.parent)}
	// Without the file there is no group of our own to look at.
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		if own, ok := memoryGroup(string(b), h.v2); ok {
			groups = append(groups, filepath.Join(root, own))
		}
	}
	return groups
}

// memoryGroup finds the path of the group that accounts for a process' memory
// in its /proc/pid/cgroup (cgroups(7)).
func memoryGroup(text string, v2 bool) (path string, ok bool) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || f[2] == "" || f[2][0] != '/' {
			continue
		}
		if v2 && f[0] == "0" && f[1] == "" {
			return f[2], true
		}
		for c := range strings.SplitSeq(f[1], ",") {
			if !v2 && c == "memory" {
				return f[2], true
			}
		}
	}
	return "", false
}
