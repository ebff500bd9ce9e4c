// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// hostTarball makes a root file system of programs of this host, with the
// libraries that they need, and gives its path.
func hostTarball(t *testing.T, programs ...string) string {
	t.Helper()
	files := map[string]bool{}
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Fatalf("%s is missing: apt-get install %s", p, map[string]string{"node": "nodejs"}[p])
		}
		files[path] = true
		out, err := exec.CommandContext(t.Context(), "ldd", path).Output()
		must(t, err)
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				files[word] = true
			}
		}
	}
	tarball := filepath.Join(t.TempDir(), "rootfs.tar")
	f, err := os.Create(tarball)
	must(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	for path := range files {
		src, err := os.Open(path)
		must(t, err)
		st, err := src.Stat()
		must(t, err)
		must(t, w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: 0o755, Size: st.Size()}))
		_, err = io.Copy(w, src)
		must(t, err)
		must(t, src.Close())
	}
	must(t, w.Close())
	return tarball
}

// TestNodeServerKeepsItsState imports a template with node in it, and asks a
// server for a counter that only its memory holds: over the same kept-alive
// connections, and new ones.
func TestNodeServerKeepsItsState(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	oc(t, s, "template", "import", "with-node", hostTarball(t, "bash", "node", "cat", "sleep", "test"))
	if list := oc(t, s, "template", "list"); !strings.Contains(list, "with-node") {
		t.Errorf("oc template list:\n%s", list)
	}
	b := create(t, s, "--template", "with-node")
	oc(t, s, "push", b.id, testdata(t, "server.js"), "/server.js")
	oc(t, s, "push", b.id, testdata(t, "ask.js"), "/ask.js")
	b.start("node", "/server.js")
	await(t, "the server answers", func() bool { return b.exec("node", "/ask.js").Code == 0 })
	ask := func(b box) string {
		t.Helper()
		out := b.exec("node", "/ask.js")
		if out.Code != 0 {
			t.Fatal(out)
		}
		return strings.TrimSpace(out.Stdout)
	}
	first := ask(b)
	cp := b.checkpoint("serving")
	next := ask(b)
	clone := spawn(t, s, cp)
	b.restore(cp)
	if got := ask(b); got != next || got == first {
		t.Errorf("restored: the server says %q, the source said %q and %q", got, first, next)
	}
	if got := ask(clone); got != next {
		t.Errorf("clone: the server says %q, the source said %q", got, next)
	}
}
