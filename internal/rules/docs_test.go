// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestNamedTestsExist keeps docs/correctness.md honest: the tests that it names
// are there.
func TestNamedTestsExist(t *testing.T) {
	t.Parallel()
	tr := load(t)
	doc, err := os.ReadFile(filepath.Join(tr.root, "docs/correctness.md"))
	if err != nil {
		t.Fatal(err)
	}
	defined := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(tr.root, "test/*/*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(src, -1) {
			defined[string(m[1])] = true
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(doc, -1)
	if len(named) == 0 {
		t.Error("docs/correctness.md names no test")
	}
	for _, m := range named {
		if !defined[string(m[1])] {
			t.Errorf("docs/correctness.md names %s, which does not exist", m[1])
		}
	}
}
