// SPDX-License-Identifier: Apache-2.0

package template

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

// A small template from packages to image, and the image read back.
func TestSmallEndToEnd(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	began := time.Now()
	tree, err := b.BuildHost(t.Context(), Small(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("tree: %d files, %d bytes, %v", tree.Files, tree.SizeBytes, time.Since(began))
	root := b.TreePath(tree)
	for _, script := range []string{
		"bash --version", "type ps top", "ls /proc /sys /dev /workspace", "tar --version", "awk 'BEGIN{print 1}'",
		"python3 -c 'import json, sqlite3, ssl; print(json.dumps(1))'", "test $(id -u sandbox) = 1000",
	} {
		cmd := exec.CommandContext(t.Context(), "chroot", root, "/bin/bash", "-c", script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
	}

	began = time.Now()
	agent := []byte("the agent")
	img, err := b.Image(t.Context(), tree, agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("image: %d bytes, %v", img.SizeBytes, time.Since(began))
	out := filepath.Join(t.TempDir(), "out")
	if msg, err := exec.CommandContext(t.Context(), "fsck.erofs", "--extract="+out, img.Path).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v: %s", err, msg)
	}
	got, err := os.ReadFile(filepath.Join(out, ".oc/agent"))
	if err != nil || !bytes.Equal(got, agent) {
		t.Errorf("agent in the image: %q, %v", got, err)
	}
	if st, err := os.Stat(filepath.Join(out, ".oc/ro")); err != nil || !st.IsDir() {
		t.Errorf(".oc/ro in the image: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, ".oc")); !os.IsNotExist(err) {
		t.Errorf("the tree was changed: %v", err)
	}
	want, err := os.ReadFile(filepath.Join(root, "usr/bin/bash"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(out, "usr/bin/bash")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("bash in the image differs: %v", err)
	}
}

func TestHostPackageMissing(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	_, err := b.BuildHost(t.Context(), []string{"no-such-package"}, nil)
	wantKind(t, err, fault.Unavailable)
	if f := fault.As(err); !strings.Contains(f.Hint, "no-such-package") {
		t.Errorf("hint %q does not say what to install", f.Hint)
	}
	_, err = b.BuildHost(t.Context(), []string{"--help"}, nil)
	wantKind(t, err, fault.Invalid)
}

func TestClosure(t *testing.T) {
	t.Parallel()
	status := "ii \tamd64\ta\ta\tlibc:any (>= 2), \t\n" +
		"ii \tamd64\tlibc\tlibc:amd64\t, x | mail-agent\t\n" +
		"ii \tall\texim\texim\t, \tmail-agent (= 4), other\n" +
		"ii \ti386\told\told:i386\t, \t\n" +
		"rc \tamd64\tgone\tgone\t, \t\n" +
		"garbage\n"
	installed := parsePackages(status)
	got, err := closure(installed, []string{"a"})
	if err != nil || !reflect.DeepEqual(got, []string{"a", "exim", "libc:amd64"}) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, name := range []string{"gone", "old", "x"} {
		_, err := closure(installed, []string{name})
		wantKind(t, err, fault.Unavailable)
	}
}
