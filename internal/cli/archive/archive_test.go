// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tree describes what is below a directory: name to mode and content or target.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil || rel == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			text += " " + string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			text = "-> " + target
		}
		out[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fill makes a directory with one of each kind.
func fill(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "run.sh"), []byte("#!/bin/sh"), 0o755))
	must(os.Chmod(filepath.Join(dir, "run.sh"), 0o751))
	must(os.WriteFile(filepath.Join(dir, "sub", "secret"), []byte("s\x00\xff"), 0o600))
	must(os.Symlink("../run.sh", filepath.Join(dir, "sub", "link")))
	must(os.Chmod(filepath.Join(dir, "sub", "empty"), 0o500))
	when := time.Unix(1_600_000_000, 0)
	must(os.Chtimes(filepath.Join(dir, "run.sh"), when, when))
}

func pack(t *testing.T, source, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := Pack(t.Context(), &b, source, name, Notices{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	source := filepath.Join(t.TempDir(), "source")
	fill(t, source)
	want := tree(t, source)
	for _, name := range []string{"any", "."} {
		archive := pack(t, source, name)
		for place, prepare := range map[string]func(string){
			"new":                 func(string) {},
			"new parents":         func(string) {},
			"existing":            func(d string) { _ = os.Mkdir(d, 0o755) },
			"over another":        func(d string) { fill(t, d) },
			"link to a directory": func(d string) { _ = os.Mkdir(d+".real", 0o755); _ = os.Symlink(d+".real", d) },
		} {
			t.Run(name+"/"+place, func(t *testing.T) {
				dest := filepath.Join(t.TempDir(), "dest")
				if place == "new parents" {
					dest = filepath.Join(dest, "a", "b")
				}
				prepare(dest)
				if name == "." {
					// The directory itself is not in such an archive: a receiver makes it.
					archive = withTop(t, archive)
				}
				stats, err := Unpack(t.Context(), bytes.NewReader(archive), dest, Notices{})
				if err != nil {
					t.Fatal(err)
				}
				if stats != (Stats{Files: 2, Bytes: 12}) {
					t.Errorf("stats %+v", stats)
				}
				real, err := filepath.EvalSymlinks(dest)
				if err != nil {
					t.Fatal(err)
				}
				if got := tree(t, real); !maps.Equal(got, want) {
					t.Errorf("got  %v\nwant %v", got, want)
				}
				if st, _ := os.Stat(filepath.Join(dest, "run.sh")); st.ModTime().Unix() != 1_600_000_000 {
					t.Errorf("time %v", st.ModTime())
				}
			})
		}
	}
}

// withTop puts "./" in front of an archive, as a sandbox sends it.
func withTop(t *testing.T, archive []byte) []byte {
	t.Helper()
	top := build(t, entry{h: tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}})
	return append(top[:512:512], archive...)
}

func TestSingleFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := filepath.Join(dir, "f")
	if err := os.WriteFile(source, []byte("new"), 0o640); err != nil {
		t.Fatal(err)
	}
	archive := pack(t, source, "name")
	dest := filepath.Join(dir, "dest")
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, dest); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), bytes.NewReader(archive), dest, Notices{}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(dest); err != nil || st.Mode() != 0o640 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if data, _ := os.ReadFile(outside); string(data) != "old" {
		t.Errorf("written through a link: %s", data)
	}
	_, err := Unpack(t.Context(), bytes.NewReader(archive), dir, Notices{})
	if err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("file onto a directory: %v", err)
	}
}

func TestPackLeavesSpecialFilesOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var skipped []string
	notices := Notices{Skipped: func(name, reason string) { skipped = append(skipped, filepath.Base(name)+" "+reason) }}
	stats, err := Pack(t.Context(), io.Discard, dir, "d", notices)
	if err != nil || stats.Files != 0 {
		t.Errorf("%+v, %v", stats, err)
	}
	if want := []string{"pipe is a pipe", "socket is a socket"}; !slices.Equal(skipped, want) {
		t.Errorf("skipped %q", skipped)
	}
}

func TestPackErrors(t *testing.T) {
	t.Parallel()
	if _, err := Pack(t.Context(), io.Discard, "/nonexistent", "x", Notices{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Pack(ctx, io.Discard, t.TempDir(), "x", Notices{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if _, err := Pack(t.Context(), io.Discard, "/etc/passwd", ".", Notices{}); err == nil {
		t.Error("a file has no members")
	}
}

// entry is a member of a hand-made archive.
type entry struct {
	h    tar.Header
	data string
}

func build(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.h.Size = int64(len(e.data))
		if e.h.Mode == 0 {
			e.h.Mode = 0o644
		}
		if err := w.WriteHeader(&e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, data string) entry { return entry{tar.Header{Name: name, Typeflag: tar.TypeReg}, data} }
func dir(name string) entry {
	return entry{h: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}
func link(name, target string) entry {
	return entry{h: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}}
}
func hard(name, target string) entry {
	return entry{h: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}}
}
func special(name string, kind byte) entry {
	return entry{h: tar.Header{Name: name, Typeflag: kind, Mode: 0o666}}
}

// TestHostile is what a sandbox may send to get out.
func TestHostile(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		entries []entry
		err     string // "" = unpacked without what is hostile
		want    map[string]string
	}{
		"parent":               {entries: []entry{dir("d"), file("d/../../evil", "x")}, err: "unsafe name"},
		"absolute":             {entries: []entry{file("/etc/evil", "x")}, err: "unsafe name"},
		"second tree":          {entries: []entry{dir("d"), file("e/x", "x")}, err: "outside of"},
		"parent in the middle": {entries: []entry{dir("d"), file("d/a/../../../evil", "x")}, err: "unsafe name"},
		"deep":                 {entries: []entry{dir("d"), file("d/"+strings.Repeat("a/", maxDepth)+"x", "x")}, err: "unsafe name"},
		"long":                 {entries: []entry{dir("d"), file("d/"+strings.Repeat("a", maxName), "x")}, err: "longer than"},
		"link out": {entries: []entry{dir("d"), link("d/l", "../../outside"), file("d/f", "x")},
			want: map[string]string{"f": "-rw-r--r-- x"}},
		"absolute link":    {entries: []entry{dir("d"), link("d/l", "/etc")}, want: map[string]string{}},
		"write by a link":  {entries: []entry{dir("d"), dir("d/s"), link("d/l", "s"), file("d/l/x", "x")}, err: "in the way"},
		"link by a link":   {entries: []entry{dir("d"), dir("d/s"), link("d/s/l", ".."), link("d/s/l/m", "../..")}, err: "in the way"},
		"directory a link": {entries: []entry{dir("d"), dir("d/s"), link("d/l", "s"), dir("d/l")}, err: "in the way"},
		"link replaced by a file": {entries: []entry{dir("d"), file("d/a", "a"), link("d/l", "a"), file("d/l", "new")},
			want: map[string]string{"a": "-rw-r--r-- a", "l": "-rw-r--r-- new"}},
		"directory replaced by a link": {entries: []entry{dir("d"), dir("d/s"), file("d/s/x", "1"), link("d/s", ".")}, err: "file exists"},
		"hard link out":                {entries: []entry{dir("d"), hard("d/h", "../outside")}, err: "unsafe name"},
		"hard link to a link":          {entries: []entry{dir("d"), link("d/l", "x"), hard("d/h", "d/l")}, err: "not a file"},
		"hard link by a link":          {entries: []entry{dir("d"), dir("d/s"), file("d/s/f", "x"), link("d/l", "s"), hard("d/h", "d/l/f")}, err: "in the way"},
		"hard link": {entries: []entry{dir("d"), file("d/f", "x"), hard("d/h", "d/f"), hard("d/h", "d/f")},
			want: map[string]string{"f": "-rw-r--r-- x", "h": "-rw-r--r-- x"}},
		"written over a hard link": {entries: []entry{dir("d"), file("d/f", "x"), hard("d/h", "d/f"), file("d/h", "y")},
			want: map[string]string{"f": "-rw-r--r-- x", "h": "-rw-r--r-- y"}},
		"devices and pipes": {entries: []entry{dir("d"), special("d/c", tar.TypeChar), special("d/b", tar.TypeBlock), special("d/p", tar.TypeFifo)},
			want: map[string]string{}},
		"set-id bits": {entries: []entry{dir("d"), {tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o6755}, "x"}},
			want: map[string]string{"f": "-rwxr-xr-x x"}},
		"unreadable directory": {entries: []entry{{h: tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}}, {h: tar.Header{Name: "d/s", Typeflag: tar.TypeDir, Mode: 0o1000}}, file("d/s/f", "x")},
			want: map[string]string{"s": "d---------", "s/f": "-rw-r--r-- x"}},
		"nothing":    {err: "empty"},
		"one link":   {entries: []entry{link("l", "x")}, want: nil},
		"file twice": {entries: []entry{file("f", "1"), file("f", "2")}, want: nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			outer := t.TempDir()
			dest := filepath.Join(outer, "in", "dest")
			_, err := Unpack(t.Context(), bytes.NewReader(build(t, tc.entries...)), dest, Notices{})
			switch {
			case tc.err == "" && err != nil:
				t.Error(err)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if tc.want != nil {
				if got := tree(t, dest); !maps.Equal(got, tc.want) {
					t.Errorf("got %v, want %v", got, tc.want)
				}
			}
			nothingOutside(t, outer)
		})
	}
}

// nothingOutside checks that outer holds only in/dest, and no temporary files.
func nothingOutside(t testing.TB, outer string) {
	t.Helper()
	err := filepath.WalkDir(outer, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(outer, file)
		if rel != "." && rel != "in" && rel != "in/dest" && !strings.HasPrefix(rel, "in/dest/") {
			t.Errorf("written outside: %s", rel)
		}
		if strings.HasPrefix(filepath.Base(file), ".oc-") {
			t.Errorf("left behind: %s", rel)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCutStream(t *testing.T) {
	t.Parallel()
	whole := build(t, dir("d"), file("d/a", strings.Repeat("x", 2000)), file("d/b", "y"))
	dest := filepath.Join(t.TempDir(), "dest")
	if err := os.MkdirAll(dest, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dest, "a"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	cut := io.MultiReader(bytes.NewReader(whole[:1536]), failing{})
	if _, err := Unpack(t.Context(), cut, dest, Notices{}); err == nil {
		t.Error("no error for a stream cut in a file")
	}
	if data, _ := os.ReadFile(filepath.Join(dest, "a")); string(data) != "old" {
		t.Errorf("half a file: %q", data)
	}
	if _, err := Unpack(t.Context(), io.MultiReader(bytes.NewReader(whole), failing{}), dest, Notices{}); err == nil {
		t.Error("no error for a stream cut behind the archive")
	}
}

// failing is a connection that broke.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func FuzzUnpack(f *testing.F) {
	f.Add(build(f, dir("d"), file("d/a", "x"), link("d/l", "a"), hard("d/h", "d/a")))
	f.Add(build(f, file("a", "x")))
	f.Add(build(f, dir("./"), dir("./s"), link("./s/l", "../.."), file("./s/l/x", "y")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		if len(archive) > 1<<20 {
			return
		}
		outer := t.TempDir()
		// Some archives are errors; what must not happen is anything outside.
		_, _ = Unpack(t.Context(), bytes.NewReader(archive), filepath.Join(outer, "in", "dest"), Notices{})
		nothingOutside(t, outer)
		_ = filepath.WalkDir(outer, func(file string, d fs.DirEntry, _ error) error {
			if d != nil && d.Type()&fs.ModeSymlink != 0 {
				if target, _ := os.Readlink(file); filepath.IsAbs(target) || !strings.HasPrefix(filepath.Join(filepath.Dir(file), target)+"/", filepath.Join(outer, "in", "dest")+"/") {
					t.Errorf("%s points out: %s", file, target)
				}
			}
			if d != nil && d.IsDir() {
				_ = os.Chmod(file, 0o700) // so that the directory can be removed
			}
			return nil
		})
	})
}
