// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/fault"
)

// withUser adds the sandbox's user to a box.
func withUser(t *testing.T, b *box) (home string) {
	home = filepath.Join(b.root, "home/sandbox")
	must(t, os.MkdirAll(home, 0o755))
	must(t, os.Chown(home, 1000, 1000))
	f, err := os.OpenFile(filepath.Join(b.root, "etc/passwd"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("sandbox:x:1000:1000::/home/sandbox:/bin/bash\n")
	must(t, err)
	must(t, f.Close())
	return home
}

func TestFiles(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	home := withUser(t, b)
	c := b.client("t1")
	data := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)

	must(t, c.WriteFile(deadline(t), "a/b/file", 0o750, bytes.NewReader(data)))
	r, fi, err := c.ReadFile(deadline(t), "a/b/file")
	must(t, err)
	got, err := io.ReadAll(r)
	must(t, err)
	must(t, r.Close())
	if sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("read back %d other bytes", len(got))
	}
	if fi.Size != int64(len(data)) || fi.Mode != 0o750 || fi.UID != 1000 || fi.GID != 1000 || fi.Kind != wire.KindFile ||
		fi.Path != filepath.Join(home, "a/b/file") || fi.Name != "file" {
		t.Errorf("info %+v", fi)
	}
	if fi, err := c.Stat(deadline(t), "a/b"); err != nil || fi.UID != 1000 || fi.Kind != wire.KindDir {
		t.Errorf("made parent: %+v, %v", fi, err)
	}
	// Replaced: the mode stays if none is given; elsewhere root owns.
	must(t, c.WriteFile(deadline(t), "a/b/file", 0, strings.NewReader("x")))
	if fi, err := c.Stat(deadline(t), "a/b/file"); err != nil || fi.Mode != 0o750 || fi.Size != 1 {
		t.Errorf("replaced: %+v, %v", fi, err)
	}
	must(t, c.WriteFile(deadline(t), filepath.Join(b.root, "etc/conf"), 0, strings.NewReader("x")))
	if fi, err := c.Stat(deadline(t), filepath.Join(b.root, "etc/conf")); err != nil || fi.UID != 0 || fi.Mode != 0o644 {
		t.Errorf("outside the home: %+v, %v", fi, err)
	}
	// A symlink is written through.
	must(t, os.Symlink("a/b/file", filepath.Join(home, "link")))
	must(t, c.WriteFile(deadline(t), "link", 0, strings.NewReader("through")))
	if got, _ := os.ReadFile(filepath.Join(home, "a/b/file")); string(got) != "through" {
		t.Errorf("through a link: %q", got)
	}
	must(t, os.Symlink("nowhere", filepath.Join(home, "dangling")))
	if fi, err := c.Stat(deadline(t), "dangling"); err != nil || fi.Kind != wire.KindSymlink || fi.Target != "nowhere" {
		t.Errorf("dangling link: %+v, %v", fi, err)
	}
	must(t, c.Mkdir(deadline(t), "d/e/f"))
	must(t, c.Mkdir(deadline(t), "d/e/f"))
	for i := range 3000 {
		must(t, os.WriteFile(filepath.Join(home, "d/e/f", strings.Repeat("n", 50)+string(rune('A'+i%26))+strings.Repeat("i", i/26)), nil, 0o644))
	}
	list, err := c.List(deadline(t), "d/e/f")
	if err != nil || len(list) != 3000 || !strings.HasPrefix(list[0].Path, filepath.Join(home, "d/e/f")+"/") {
		t.Errorf("list: %d, %v", len(list), err)
	}
	must(t, c.Remove(deadline(t), "d"))
	must(t, c.Remove(deadline(t), "d"))
}

func TestFileErrors(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	must(t, os.WriteFile(filepath.Join(b.home, "file"), nil, 0o644))
	must(t, unix.Mkfifo(filepath.Join(b.home, "fifo"), 0o644))
	read := func(p string) error { _, _, err := c.ReadFile(deadline(t), p); return err }
	write := func(p string) error { return c.WriteFile(deadline(t), p, 0, strings.NewReader("x")) }
	stat := func(p string) error { _, err := c.Stat(deadline(t), p); return err }
	for _, tc := range []struct {
		name string
		err  error
		kind fault.Kind
	}{
		{"read missing", read("no"), fault.NotFound},
		{"read directory", read("/etc"), fault.Invalid},
		{"read fifo", read("fifo"), fault.Invalid},
		{"read below file", read("file/x"), fault.Invalid},
		{"stat missing", stat("no"), fault.NotFound},
		{"write directory", write("/etc"), fault.Invalid},
		{"write fifo", write("fifo"), fault.Invalid},
		{"write below file", write("file/x"), fault.Conflict},
		{"empty path", stat(""), fault.Invalid},
		{"long path", stat(strings.Repeat("x/", 3000)), fault.Invalid},
		{"long name", stat(strings.Repeat("x", 300)), fault.Invalid},
		{"mkdir over file", c.Mkdir(deadline(t), "file"), fault.Conflict},
		{"remove root", c.Remove(deadline(t), "/"), fault.Invalid},
		{"unpack garbage", c.Unpack(deadline(t), "u", strings.NewReader(strings.Repeat("garbage", 1000))), fault.Invalid},
	} {
		if !fault.Is(tc.err, tc.kind) {
			t.Errorf("%s: %v", tc.name, tc.err)
		}
	}
}

func TestPackAndUnpack(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	home := withUser(t, b)
	c := b.client("t1")
	src := filepath.Join(home, "src")
	must(t, os.MkdirAll(filepath.Join(src, "sub/empty"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "run.sh"), []byte("#!/bin/sh\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "sub/big"), bytes.Repeat([]byte("big"), 1<<20), 0o600))
	must(t, os.Symlink("../run.sh", filepath.Join(src, "sub/link")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(src, "abs")))
	must(t, unix.Mkfifo(filepath.Join(src, "fifo"), 0o644)) // left out
	must(t, os.Chmod(filepath.Join(src, "sub"), 0o700))

	r, err := c.Pack(deadline(t), "src")
	must(t, err)
	defer r.Close()
	must(t, c.Unpack(deadline(t), "dst/copy", r))
	want := map[string]string{
		"run.sh": "-rwxr-xr-x", "sub": "drwx------", "sub/empty": "drwxr-xr-x", "sub/big": "-rw-------",
		"sub/link": "L", "abs": "L",
	}
	seen := 0
	err = filepath.WalkDir(filepath.Join(home, "dst/copy"), func(p string, d fs.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(filepath.Join(home, "dst/copy"), p)
		fi, err := os.Lstat(p)
		must(t, err)
		if rel == "." {
			return nil
		}
		seen++
		if mode := fi.Mode().String(); !strings.HasPrefix(mode, want[rel]) {
			t.Errorf("%s is %s", rel, mode)
		}
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		if st.Uid != 1000 || st.Gid != 1000 {
			t.Errorf("%s belongs to %d", rel, st.Uid)
		}
		return nil
	})
	must(t, err)
	if seen != len(want) {
		t.Errorf("%d entries", seen)
	}
	if l, _ := os.Readlink(filepath.Join(home, "dst/copy/sub/link")); l != "../run.sh" {
		t.Errorf("link leads to %q", l)
	}
	// A single file is an entry with its base name.
	one, err := c.Pack(deadline(t), "src/run.sh")
	must(t, err)
	defer one.Close()
	tr := tar.NewReader(one)
	h, err := tr.Next()
	must(t, err)
	if _, err := tr.Next(); h.Name != "run.sh" || h.Mode != 0o755 || err != io.EOF {
		t.Errorf("single file: %+v, %v", h, err)
	}
}

// TestHostileArchives unpacks archives that try to reach out of the directory.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c := b.client("t1")
	outside := filepath.Join(b.root, "outside")
	must(t, os.MkdirAll(outside, 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	for name, entries := range map[string][]tar.Header{
		"parent":               {file("../outside/x")},
		"parent in the middle": {file("a/../../outside/x")},
		"absolute":             {file(outside + "/x")},
		"through a link":       {link("l", outside), file("l/x")},
		"through a relative":   {link("l", "../../outside"), file("l/x")},
		"directory via link":   {link("l", outside), {Name: "l/d", Typeflag: tar.TypeDir, Mode: 0o777}},
		"mode via link":        {link("l", outside), {Name: "l", Typeflag: tar.TypeDir, Mode: 0o777}},
		"hard link out":        {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../outside/secret"}},
		"hard link absolute":   {{Name: "h", Typeflag: tar.TypeLink, Linkname: outside + "/secret"}},
		"hard link via link":   {link("l", outside), {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/secret"}},
		"device":               {{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"fifo":                 {{Name: "fifo", Typeflag: tar.TypeFifo}},
	} {
		dir := filepath.Join(b.home, "t", strings.ReplaceAll(name, " ", "-"))
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range entries {
			must(t, tw.WriteHeader(&h))
		}
		must(t, tw.Close())
		err := c.Unpack(deadline(t), dir, &buf)
		if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e, err := os.ReadDir(outside)
	fi, _ := os.Stat(outside)
	if err != nil || len(e) != 1 || fi.Mode().Perm() != 0o755 {
		t.Errorf("outside: %v, %v, %v", e, fi.Mode(), err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(outside, "secret"), &st))
	if st.Nlink != 1 {
		t.Error("a hard link leads out")
	}
	// Set-id bits are not taken over.
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	must(t, tw.WriteHeader(&tar.Header{Name: "suid", Typeflag: tar.TypeReg, Mode: 0o4755}))
	must(t, tw.Close())
	must(t, c.Unpack(deadline(t), "suid", &buf))
	if fi, err := os.Stat(filepath.Join(b.home, "suid/suid")); err != nil || fi.Mode() != 0o755 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

func TestIdentityAndProbe(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	must(t, os.WriteFile(filepath.Join(b.root, "etc/hosts"), []byte("127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.1 keep"), 0o644))
	c := b.client("t1")
	id := agentclient.Identity{
		Hostname: "sb-12345678", MachineID: strings.Repeat("0123456789abcdef", 2), Entropy: []byte("seed"), Generation: "g-2",
	}
	read := func(p string) string {
		got, err := os.ReadFile(filepath.Join(b.root, p))
		must(t, err)
		return string(got)
	}
	for range 2 { // idempotent
		must(t, c.SetIdentity(deadline(t), id))
		if got := read("etc/hosts"); got != "127.0.0.1 localhost\n10.0.0.1 keep\n127.0.1.1\tsb-12345678\n" {
			t.Errorf("hosts: %q", got)
		}
		if read("etc/hostname") != "sb-12345678\n" || read("etc/machine-id") != id.MachineID+"\n" || read("run/oc/generation") != "g-2\n" {
			t.Error("files differ")
		}
	}
	must(t, c.SetIdentity(deadline(t), agentclient.Identity{})) // that of the Hello
	if got := read("run/oc/generation"); got != "g-1\n" {
		t.Errorf("generation %q", got)
	}
	for name, bad := range map[string]agentclient.Identity{
		"host name":  {Hostname: "a b"},
		"new line":   {Hostname: "a\nb"},
		"machine id": {MachineID: "../x"},
		"generation": {Generation: "a\nb"},
		"entropy":    {Entropy: make([]byte, 8<<10)},
	} {
		if err := c.SetIdentity(deadline(t), bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, c.Probe(deadline(t)))
	if e, err := os.ReadDir(filepath.Join(b.root, "run/oc")); err != nil || len(e) != 1 {
		t.Errorf("left by the probe: %v, %v", e, err)
	}
	must(t, os.RemoveAll(filepath.Join(b.root, "run")))
	if err := c.Probe(deadline(t)); !fault.Is(err, fault.Internal) {
		t.Errorf("probe without a place to write: %v", err)
	}
}
