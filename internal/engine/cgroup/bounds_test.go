// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"path/filepath"
	"testing"
)

func TestMemoryGroup(t *testing.T) {
	t.Parallel()
	const mixed = "9:name=systemd:/s\n5:cpu,memory:/a:b\n4:memory2:/no\n0::/unified\n"
	for _, c := range []struct {
		text string
		v2   bool
		want string
	}{
		{mixed, false, "/a:b"},
		{mixed, true, "/unified"},
		{"0::/\n", true, "/"},
		{"0::/\n", false, ""},
		{"4:memory:relative\n5:memory\n\n::\n", false, ""},
	} {
		if got, ok := memoryGroup(c.text, c.v2); got != c.want || ok != (c.want != "") {
			t.Errorf("%q, v2 %v: %q, %v", c.text, c.v2, got, ok)
		}
	}
}

func TestMemoryGroupsAreThoseOfTheMemoryController(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		h    Hierarchy
		want string
	}{
		{Hierarchy{roots: map[string]string{"memory": "/m", "cpu": "/c"}, parent: "oc/x"}, "/m"},
		{Hierarchy{v2: true, roots: map[string]string{"": "/u"}, parent: "oc/x"}, "/u"},
	} {
		groups := c.h.MemoryGroups()
		if groups[0] != filepath.Join(c.want, "oc/x") {
			t.Errorf("%q", groups)
		}
	}
}

func FuzzMemoryGroup(f *testing.F) {
	f.Add("4:memory:/a\n0::/b\n", true)
	f.Fuzz(func(t *testing.T, text string, v2 bool) {
		if path, ok := memoryGroup(text, v2); ok != filepath.IsAbs(path) {
			t.Errorf("%q, %v", path, ok)
		}
	})
}
