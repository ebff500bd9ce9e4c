// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bytes"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// header is how every Go file begins.
const header = "// SPDX-License-Identifier: Apache-2.0\n\n"

// maxLines is the length from which a file is doing more than one job.
const maxLines = 500

func TestLicenceHeader(t *testing.T) {
	t.Parallel()
	for _, s := range load(t).sources {
		if !bytes.HasPrefix(s.text, []byte(header)) {
			t.Errorf("%s: does not begin with %q and an empty line", s.path, strings.TrimSpace(header))
		}
	}
}

func TestFileLength(t *testing.T) {
	t.Parallel()
	for _, s := range load(t).sources {
		if n := bytes.Count(s.text, []byte("\n")); n > maxLines && !s.test() {
			t.Errorf("%s: %d lines, the limit is %d: which of its jobs wants a file of its own?", s.path, n, maxLines)
		}
	}
}

// TestOnePackageDoc wants exactly one package comment, so that nobody edits the
// one that is not shown.
func TestOnePackageDoc(t *testing.T) {
	t.Parallel()
	for dir, sources := range load(t).packages() {
		var docs []string
		code := false
		for _, s := range sources {
			if s.test() {
				continue
			}
			code = true
			if s.file.Doc != nil && !directivesOnly(s.file.Doc) {
				docs = append(docs, s.path)
			}
		}
		switch {
		case code && len(docs) == 0:
			t.Errorf("%s: no package comment: what is it, what always holds, what must it not know?", dir)
		case len(docs) > 1:
			t.Errorf("%s: more than one package comment, in %s", dir, strings.Join(docs, ", "))
		}
	}
}

// directivesOnly tells whether a comment group holds only things like
// //go:build.
func directivesOnly(doc *ast.CommentGroup) bool {
	return !slices.ContainsFunc(doc.List, func(c *ast.Comment) bool {
		return !strings.HasPrefix(c.Text, "//go:")
	})
}

// TestNoSleepInTests keeps tests from guessing how long something takes: they
// wait for the condition, with a deadline. Where testing/synctest makes the time,
// sleeping is no guess.
func TestNoSleepInTests(t *testing.T) {
	t.Parallel()
	tr := load(t)
	for _, s := range tr.sources {
		if !s.test() || slices.ContainsFunc(s.file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing/synctest"` }) {
			continue
		}
		for _, at := range tr.calls(s, "time", "Sleep") {
			t.Errorf("%s: time.Sleep in a test: wait for the condition, with a deadline", at)
		}
	}
}

// plainWrites are the calls that make a file visible, or replace one, without
// promising that it is there after a power cut.
var plainWrites = []struct{ pkg, name string }{
	{"os", "WriteFile"},
	{"os", "Rename"},
	{"io/ioutil", "WriteFile"},
}

// plainWriters are the files, or directories with a slash at the end, that may
// use plainWrites, and why what they write need not survive a power cut.
var plainWriters = map[string]string{
	"internal/agent/":                          "inside a sandbox nothing is durable before the next checkpoint, which holds memory and disk alike",
	"internal/bucket/dir/volatile.go":          "objects that are put as such: leases, which a power cut ends anyway",
	"internal/engine/gvisor/helper/prepare.go": "the bundle of a generation is worth nothing once its engine is gone",
	"internal/engine/gvisor/proc/proc.go":      "a value in /proc",
	"internal/engine/gvisor/shape/shape.go":    "the bundle of a generation is worth nothing once its engine is gone",
	"internal/keeper/process.go":               "a value in /proc",
	"internal/sandbox/sandboxtest/":            "files of tests",
	"internal/store/v1/write.go":               "a copy of what is stored, for the engine helper that opens it at once",
	"internal/template/debian.go":              "scratch beside a tree that is being made",
	"internal/template/farm.go":                "scratch from which an image is made; the image is what has to last",
}

// TestDurableWrites keeps all promises of durability behind one seam,
// internal/durable, where a test can rebuild what a power cut would leave.
func TestDurableWrites(t *testing.T) {
	t.Parallel()
	tr := load(t)
	used := map[string]bool{}
	for _, s := range tr.sources {
		if s.test() || below(s.dir(), []string{"internal/durable", "test", "bench"}) {
			continue
		}
		for _, w := range plainWrites {
			for _, at := range tr.calls(s, w.pkg, w.name) {
				if key := exception(s.path); key != "" {
					used[key] = true
					continue
				}
				t.Errorf("%s: %s.%s: use internal/durable, or say in plainWriters why the file may be lost", at, w.pkg, w.name)
			}
		}
	}
	for key := range plainWriters {
		if !used[key] {
			t.Errorf("plainWriters: %s writes no file any more: take it out", key)
		}
	}
}

// exception is the entry of plainWriters that covers path, "" if none does.
func exception(path string) string {
	for key := range plainWriters {
		if key == path || strings.HasSuffix(key, "/") && strings.HasPrefix(path, key) {
			return key
		}
	}
	return ""
}
