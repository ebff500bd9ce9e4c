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

// TestNewCodeHasAPlace keeps the table of CONTRIBUTING.md true: the packages that
// it names are there, but for those of which it says that they are not, and each
// top directory of packages has its line.
func TestNewCodeHasAPlace(t *testing.T) {
	t.Parallel()
	tr := load(t)
	doc, err := os.ReadFile(filepath.Join(tr.root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`((?:internal|cmd)/[a-z/-]+)`( \\(not there yet\\))?").FindAllSubmatch(doc, -1) {
		dir, planned := string(m[1]), len(m[2]) > 0
		named[dir] = true
		if _, err := os.Stat(filepath.Join(tr.root, dir)); (err == nil) == planned {
			t.Errorf("CONTRIBUTING.md: %s: %v, and the table says the contrary", dir, err)
		}
	}
	for _, pattern := range []string{"internal/*", "cmd/*"} {
		dirs, err := filepath.Glob(filepath.Join(tr.root, pattern))
		if err != nil || len(dirs) == 0 {
			t.Fatal(pattern, err)
		}
		for _, path := range dirs {
			if dir, err := filepath.Rel(tr.root, path); err != nil || !named[dir] {
				t.Errorf("CONTRIBUTING.md has no line for %s: say what goes there (%v)", dir, err)
			}
		}
	}
}
