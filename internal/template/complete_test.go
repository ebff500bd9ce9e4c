// SPDX-License-Identifier: Apache-2.0

package template

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

func TestCompleteEmpty(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	tree := mustImport(t, b, dir("usr")) // as good as nothing
	for name, mode := range map[string]os.FileMode{
		"proc": 0o755 | os.ModeDir, "sys": 0o755 | os.ModeDir, "dev": 0o755 | os.ModeDir, "run": 0o755 | os.ModeDir,
		"tmp": 0o777 | os.ModeSticky | os.ModeDir, "home/sandbox": 0o755 | os.ModeDir, "etc/machine-id": 0o644,
		"etc/hostname": 0o644, "etc/resolv.conf": 0o644, "workspace": 0o777 | os.ModeSymlink,
	} {
		st, err := os.Lstat(filepath.Join(b.TreePath(tree), name))
		if err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if got := treeFile(t, b, tree, "etc/passwd"); got != "root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000::/home/sandbox:/bin/sh\n" {
		t.Errorf("passwd %q", got)
	}
	if _, err := os.Lstat(filepath.Join(b.TreePath(tree), "etc/shadow")); !os.IsNotExist(err) {
		t.Errorf("shadow was made: %v", err)
	}
}

func TestCompleteFull(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	shadow := file("etc/shadow", "root:*:1:0:99999:7:::\n")
	shadow.Mode, shadow.Gid = 0o640, 42
	tree := mustImport(t, b,
		file("etc/passwd", "root:x:0:0::/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash"), // no newline
		file("etc/group", "root:x:0:\nnode:x:1000:\nother:x:1001:\n"), shadow,
		file("bin/bash", "#!"), dir("etc/sudoers.d"), file("etc/hosts", "10.0.0.1 own\n"),
		link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"), file("etc/machine-id", "0123456789abcdef\n"),
		file(".oc/agent", "forged"), file("dev/null", "a file"), link("var/run", "/run"),
		entry{tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock}, ""},
	)
	for name, want := range map[string]string{
		"etc/passwd":            "root:x:0:0::/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash\nsandbox:x:1001:1002::/home/sandbox:/bin/bash\n",
		"etc/group":             "root:x:0:\nnode:x:1000:\nother:x:1001:\nsandbox:x:1002:\n",
		"etc/shadow":            "root:*:1:0:99999:7:::\nsandbox:*:10957:0:99999:7:::\n",
		"etc/sudoers.d/sandbox": "sandbox ALL=(ALL:ALL) NOPASSWD:ALL\n",
		"etc/hosts":             "10.0.0.1 own\n",
		"etc/resolv.conf":       "", "etc/machine-id": "",
	} {
		if got := treeFile(t, b, tree, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	st, err := os.Stat(filepath.Join(b.TreePath(tree), "etc/shadow"))
	if err != nil || st.Mode() != 0o640 || st.Sys().(*syscall.Stat_t).Gid != 42 {
		t.Errorf("shadow: %v, %v", st, err)
	}
	for _, name := range []string{".oc", "dev/null", "dev/sda"} {
		if _, err := os.Lstat(filepath.Join(b.TreePath(tree), name)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
}

func TestCompleteKeepsUser(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	passwd := "sandbox:x:7:7::/opt:/bin/zsh\n"
	tree := mustImport(t, b, file("etc/passwd", passwd))
	if got := treeFile(t, b, tree, "etc/passwd"); got != passwd {
		t.Errorf("passwd %q", got)
	}
}

// What completing writes follows links inside the tree only.
func TestCompleteHostile(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	outside := t.TempDir()
	tree := mustImport(t, b, link("etc", outside), link("home", "../../../../.."+outside), link("run", outside), link("workspace", outside))
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("written outside: %v, %v", names, err)
	}
	if got := treeFile(t, b, tree, outside+"/passwd"); !strings.Contains(got, "sandbox") {
		t.Errorf("passwd %q", got)
	}
	for _, entries := range [][]entry{
		{file("etc", "a file")}, {link("etc", "etc")}, {file("home", "a file")}, {dir("etc/passwd")},
	} {
		_, err := importBytes(t, b, archiveOf(t, entries...))
		if entries[0].Typeflag == tar.TypeDir {
			if err == nil {
				t.Errorf("%s: no error", entries[0].Name)
			}
			continue
		}
		wantKind(t, err, fault.Invalid)
	}
}
