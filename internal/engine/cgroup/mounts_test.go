// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"strings"
	"testing"
)

// Whatever is mounted, a hierarchy that is found has a place for each controller.
func FuzzMounts(f *testing.F) {
	f.Add("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /c cgroup rw,cpu,cpuacct 0 0\ncgroup /p cgroup rw,pids 0 0\n")
	f.Add("cgroup2 /sys/fs/cgroup\\040x cgroup2 rw 0 0\nproc /proc proc rw 0 0\n")
	f.Add("a b cgroup\n\n \nx x cgroup2 x")
	f.Fuzz(func(t *testing.T, table string) {
		h, err := parse(strings.Split(table, "\n"), "oc")
		if err != nil {
			return
		}
		want := controllers[:]
		if h.v2 {
			want = []string{""}
		}
		if len(h.roots) != len(want) {
			t.Errorf("it has %q", h.roots)
		}
		for _, c := range want {
			if h.roots[c] == "" {
				t.Errorf("no place for %q", c)
			}
		}
	})
}
