// SPDX-License-Identifier: Apache-2.0

package template

import (
	"archive/tar"
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

func newBuilder(t *testing.T) *Builder {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run them with sudo")
	}
	b, err := New(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	// Whatever a test did, nothing may be left half made.
	t.Cleanup(func() {
		names, err := namesIn(filepath.Join(b.dir, "tmp"), "")
		if err != nil || len(names) > 0 {
			t.Errorf("left in tmp: %q, %v", names, err)
		}
	})
	return b
}

// entry is one entry of a test's archive; content makes it a file.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func link(name, target string) entry {
	return entry{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}, ""}
}

func archiveOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.content))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// importBytes imports an archive that is given as bytes.
func importBytes(t *testing.T, b *Builder, data []byte) (Tree, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return b.Import(t.Context(), path, nil)
}

func mustImport(t *testing.T, b *Builder, entries ...entry) Tree {
	t.Helper()
	tree, err := importBytes(t, b, archiveOf(t, entries...))
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("got error %v, want one of kind %s", err, kind)
	}
}

// treeFile reads a file of a tree.
func treeFile(t *testing.T, b *Builder, tree Tree, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.TreePath(tree), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
