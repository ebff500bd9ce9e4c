// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/opencomputer/oc/client"
)

func TestDrawTree(t *testing.T) {
	t.Parallel()
	node := func(id, parent string) client.TreeNode {
		return client.TreeNode{ID: id, Status: "ready", ParentID: parent}
	}
	for name, tc := range map[string]struct {
		nodes []client.TreeNode
		want  string
	}{
		"two trees":            {[]client.TreeNode{node("a", ""), node("b", ""), node("c", "b")}, "a\nb\n└─ c\n"},
		"child first":          {[]client.TreeNode{node("c", "b"), node("b", "")}, "b\n└─ c\n"},
		"parent not there":     {[]client.TreeNode{node("c", "gone")}, "c\n"},
		"own parent":           {[]client.TreeNode{node("a", "a")}, "a\n"},
		"circle":               {[]client.TreeNode{node("a", "b"), node("b", "a")}, "a\n└─ b\n"},
		"bar beside the elder": {[]client.TreeNode{node("a", ""), node("b", "a"), node("c", "b"), node("d", "a")}, "a\n├─ b\n│  └─ c\n└─ d\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b strings.Builder
			if err := drawTree(&b, tc.nodes); err != nil {
				t.Fatal(err)
			}
			if got := strings.ReplaceAll(b.String(), "  (ready)", ""); got != tc.want {
				t.Errorf("got\n%swant\n%s", got, tc.want)
			}
		})
	}
}

func FuzzPairs(f *testing.F) {
	f.Add("A=1,B=2")
	f.Add("A=1,2,C")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := pairs("env", []string{s})
		if err != nil {
			return
		}
		n := 0
		for k, v := range m {
			n += len(k) + 1 + len(v)
		}
		if len(m) == 0 || n > len(s) {
			t.Errorf("%q became %v", s, m)
		}
	})
}
