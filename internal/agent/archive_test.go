// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"archive/tar"
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// FuzzUnpack unpacks arbitrary bytes into a directory that holds links out of
// it; nothing beside the directory may appear or change.
func FuzzUnpack(f *testing.F) {
	for _, hs := range [][]tar.Header{
		{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o644}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l/f", Typeflag: tar.TypeReg}},
		{{Name: "out/f", Typeflag: tar.TypeReg}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "out/secret"}},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range hs {
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		base := t.TempDir()
		outside, dir := filepath.Join(base, "outside"), filepath.Join(base, "dir")
		for _, d := range []string{outside, dir} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		secret := filepath.Join(outside, "secret")
		if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
			t.Fatal(err)
		}
		a := &Agent{cfg: Config{Root: base}, log: slog.New(slog.DiscardHandler)}
		_ = a.unpack(dir, bytes.NewReader(archive))
		fi, err := os.Stat(secret)
		if err != nil || fi.Mode() != 0o600 || fi.Size() != 6 || fi.Sys().(*sysStat).Nlink != 1 {
			t.Fatalf("secret: %v, %v", fi, err)
		}
		for d, want := range map[string]int{base: 2, outside: 1} {
			if e, err := os.ReadDir(d); err != nil || len(e) != want {
				t.Fatalf("%s holds %v, %v", d, e, err)
			}
		}
	})
}

// TestUnpackNamesTheFile that cannot be written, not the one beside it.
func TestUnpackNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: Config{Root: dir}, log: slog.New(slog.DiscardHandler)}
	long := strings.Repeat("n", 300)
	for name, want := range map[string]wire.Error{
		"dir": {Kind: wire.Conflict, Message: "dir is there and is a directory"},
		long:  {Kind: wire.Invalid, Message: long + " cannot be written: file name too long"},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := report(a.unpack(dir, &buf)); *got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
