// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

// place is a root to unpack into, beside things that nothing may change.
type place struct {
	top, root string
}

func newPlace(t testing.TB) place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run them with sudo")
	}
	p := place{top: t.TempDir()}
	p.root = filepath.Join(p.top, "root")
	for _, d := range []string{"root", "outside"} {
		if err := os.Mkdir(filepath.Join(p.top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.top, "outside/secret"), []byte("secret"), 0o640); err != nil {
		t.Fatal(err)
	}
	return p
}

// unpack writes archives into the root, as layers or not.
func (p place) unpack(t testing.TB, limits Limits, layers bool, archives ...[]byte) (Stats, error) {
	t.Helper()
	root, err := rootfs.Open(p.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	target := New(root, limits)
	write := target.Tar
	if layers {
		write = target.Layer
	}
	for _, a := range archives {
		if err := write(t.Context(), bytes.NewReader(a)); err != nil {
			return target.Stats(), err
		}
	}
	return target.Stats(), nil
}

// checkOutside fails the test if anything beside the root has changed.
func (p place) checkOutside(t testing.TB) {
	t.Helper()
	if got := list(t, p.top, "root"); !slices.Equal(got, []string{"outside/", "outside/secret -rw-r----- 1 secret", "root/"}) {
		t.Errorf("outside of the root: %q", got)
	}
}

// list gives what is below a directory, except below the name skip.
func list(t testing.TB, dir, skip string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			out = append(out, rel+"/")
			if rel == skip {
				return fs.SkipDir
			}
		case d.Type() == fs.ModeSymlink:
			target, _ := os.Readlink(path)
			out = append(out, rel+" -> "+target)
		case d.Type().IsRegular():
			data, _ := os.ReadFile(path)
			out = append(out, fmt.Sprintf("%s %v %d %s", rel, info.Mode(), info.Sys().(*syscall.Stat_t).Nlink, data))
		default:
			out = append(out, fmt.Sprintf("%s %v", rel, info.Mode()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// e makes an entry from its type, name, and content or target.
func e(typ byte, name, arg string) tar.Header {
	h := tar.Header{Typeflag: typ, Name: name, Mode: 0o644}
	switch typ {
	case tar.TypeReg:
		h.Size = int64(len(arg))
		h.PAXRecords = map[string]string{"OC.test": arg + "."} // where archiveOf finds the content
	case tar.TypeSymlink, tar.TypeLink:
		h.Linkname = arg
	case tar.TypeDir:
		h.Mode = 0o755
	}
	return h
}

func archiveOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		content := strings.TrimSuffix(h.PAXRecords["OC.test"], ".")
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

const (
	reg  = tar.TypeReg
	dir  = tar.TypeDir
	sym  = tar.TypeSymlink
	hard = tar.TypeLink
)

// Archives that try to get out: each is refused, or what it says is done
// inside.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	const ok = fault.Kind("")
	for name, c := range map[string]struct {
		want    fault.Kind
		entries []tar.Header
	}{
		"climb":                  {fault.Invalid, []tar.Header{e(reg, "../outside/secret", "x")}},
		"climb in the middle":    {fault.Invalid, []tar.Header{e(reg, "a/../../outside/secret", "x")}},
		"absolute":               {ok, []tar.Header{e(reg, "/outside/secret", "x")}},
		"link then write":        {ok, []tar.Header{e(sym, "l", "../outside"), e(reg, "l/secret", "x")}},
		"far link then write":    {ok, []tar.Header{e(sym, "l", strings.Repeat("../", 40)+"outside"), e(reg, "l/secret", "x")}},
		"link over file":         {ok, []tar.Header{e(sym, "l", "../outside/secret"), e(reg, "l", "x")}},
		"link then directory":    {ok, []tar.Header{e(sym, "l", "../outside"), e(dir, "l", "")}},
		"two links":              {ok, []tar.Header{e(sym, "a", "b"), e(sym, "b", "../outside"), e(reg, "a/secret", "x")}},
		"proc":                   {ok, []tar.Header{e(sym, "l", "/proc/self/cwd"), e(reg, "l/x", "x")}},
		"loop":                   {fault.Invalid, []tar.Header{e(sym, "a", "b"), e(sym, "b", "a"), e(reg, "a/x", "x")}},
		"hard link out":          {fault.Invalid, []tar.Header{e(hard, "h", "../outside/secret")}},
		"hard link absolute":     {fault.Invalid, []tar.Header{e(hard, "h", "/outside/secret"), e(reg, "h", "x")}},
		"hard link through link": {fault.Invalid, []tar.Header{e(sym, "l", "../outside"), e(hard, "h", "l/secret")}},
		"hard link to link":      {ok, []tar.Header{e(sym, "l", "../outside/secret"), e(hard, "h", "l"), e(reg, "h", "x")}},
		"hard link to nothing":   {fault.Invalid, []tar.Header{e(hard, "h", "nothing")}},
		"hard link to directory": {fault.Invalid, []tar.Header{e(dir, "d", ""), e(hard, "h", "d")}},
		"file for directory":     {fault.Invalid, []tar.Header{e(reg, "f", "x"), e(reg, "f/g", "x")}},
		"root is a file":         {fault.Invalid, []tar.Header{e(reg, ".", "")}},
		"root is a link":         {fault.Invalid, []tar.Header{e(sym, "/", "../outside")}},
		"long element":           {fault.Invalid, []tar.Header{e(reg, strings.Repeat("a", 300), "x")}},
		"long path":              {fault.Invalid, []tar.Header{e(reg, strings.Repeat("a/", 2100)+"a", "x")}},
		"whiteout in tarball":    {ok, []tar.Header{e(reg, ".wh.x", "")}},
		"unknown type":           {fault.Invalid, []tar.Header{{Typeflag: 'Z', Name: "z"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			_, err := p.unpack(t, Limits{}, false, archiveOf(t, c.entries...))
			if c.want == ok && err != nil || c.want != ok && !fault.Is(err, c.want) {
				t.Errorf("got error %v, want kind %q", err, c.want)
			}
			p.checkOutside(t)
		})
	}
}

func TestWhatIsKept(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	suid := e(reg, "bin/su", "su")
	suid.Mode, suid.Uid, suid.Gid, suid.ModTime = 0o4755, 12, 34, when
	suid.PAXRecords["SCHILY.xattr.user.note"] = "n"
	suid.PAXRecords["SCHILY.xattr.trusted.overlay.redirect"] = "/etc"
	d := e(dir, "bin", "")
	d.ModTime, d.Mode = when, 0o1777
	device := tar.Header{Typeflag: tar.TypeChar, Name: "dev/mem", Devmajor: 1, Devminor: 1}
	fifo := tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o622}
	stats, err := p.unpack(t, Limits{}, false, archiveOf(t, d, suid, e(hard, "bin/also", "bin/su"), e(sym, "l", "/bin"), device, fifo))
	if err != nil {
		t.Fatal(err)
	}
	if stats != (Stats{Devices: 1, Xattrs: 1}) {
		t.Errorf("left out: %+v", stats)
	}
	got := list(t, p.root, "")
	want := []string{"bin/", "bin/also urwxr-xr-x 2 su", "bin/su urwxr-xr-x 2 su", "fifo prw--w--w-", "l -> /bin"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, name := range []string{"bin", "bin/su"} {
		st, err := os.Stat(filepath.Join(p.root, name))
		if err != nil || !st.ModTime().Equal(when) {
			t.Errorf("%s: time %v, %v", name, st.ModTime(), err)
		}
	}
	st, err := os.Stat(filepath.Join(p.root, "bin/su"))
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 12 || sys.Gid != 34 {
		t.Errorf("owner %d:%d", sys.Uid, sys.Gid)
	}
	buf := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(p.root, "bin/su"), "user.note", buf); err != nil || string(buf[:n]) != "n" {
		t.Errorf("xattr %q, %v", buf[:max(n, 0)], err)
	}
}

func TestLayers(t *testing.T) {
	t.Parallel()
	lower := []tar.Header{
		e(dir, "d", ""), e(reg, "d/a", "1"), e(reg, "d/b", "1"), e(dir, "d/sub", ""), e(reg, "d/sub/c", "1"),
		e(reg, "f", "1"), e(sym, "l", "d"),
	}
	for name, c := range map[string]struct {
		upper []tar.Header
		want  []string // beside what the layer leaves
	}{
		"whiteout":        {[]tar.Header{e(reg, "d/.wh.a", "")}, []string{"d/", "d/b 1", "d/sub/", "d/sub/c 1", "f 1", "l -> d"}},
		"of a directory":  {[]tar.Header{e(reg, ".wh.d", "")}, []string{"f 1", "l -> d"}},
		"of nothing":      {[]tar.Header{e(reg, ".wh.x", ""), e(reg, "no/.wh.y", "")}, []string{"d/", "d/a 1", "d/b 1", "d/sub/", "d/sub/c 1", "f 1", "l -> d"}},
		"opaque first":    {[]tar.Header{e(dir, "d", ""), e(reg, "d/.wh..wh..opq", ""), e(reg, "d/n", "2")}, []string{"d/", "d/n 2", "f 1", "l -> d"}},
		"opaque last":     {[]tar.Header{e(dir, "d", ""), e(reg, "d/sub/n", "2"), e(reg, "d/b", "2"), e(reg, "d/.wh..wh..opq", "")}, []string{"d/", "d/b 2", "d/sub/", "d/sub/n 2", "f 1", "l -> d"}},
		"opaque root":     {[]tar.Header{e(reg, ".wh..wh..opq", ""), e(reg, "n", "2")}, []string{"n 2"}},
		"own file stays":  {[]tar.Header{e(reg, "f", "2"), e(reg, ".wh.f", "")}, []string{"d/", "d/a 1", "d/b 1", "d/sub/", "d/sub/c 1", "f 2", "l -> d"}},
		"file by dir":     {[]tar.Header{e(dir, "f", ""), e(reg, "f/x", "2")}, []string{"d/", "d/a 1", "d/b 1", "d/sub/", "d/sub/c 1", "f/", "f/x 2", "l -> d"}},
		"dir by file":     {[]tar.Header{e(reg, "d", "2")}, []string{"d 2", "f 1", "l -> d"}},
		"link by dir":     {[]tar.Header{e(dir, "l", ""), e(reg, "l/x", "2")}, []string{"d/", "d/a 1", "d/b 1", "d/sub/", "d/sub/c 1", "f 1", "l/", "l/x 2"}},
		"driver's own":    {[]tar.Header{e(reg, ".wh..wh.aufs", "x")}, []string{"d/", "d/a 1", "d/b 1", "d/sub/", "d/sub/c 1", "f 1", "l -> d"}},
		"hard link below": {[]tar.Header{e(hard, "h", "d/a")}, []string{"d/", "d/a 1", "d/b 1", "d/sub/", "d/sub/c 1", "f 1", "h 1", "l -> d"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			if _, err := p.unpack(t, Limits{}, true, archiveOf(t, lower...), archiveOf(t, c.upper...)); err != nil {
				t.Fatal(err)
			}
			got := list(t, p.root, "")
			for i, l := range got { // modes and link counts are tested elsewhere
				if f := strings.Fields(l); len(f) > 3 || len(f) == 3 && f[1] != "->" {
					got[i] = f[0] + " " + f[len(f)-1]
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			p.checkOutside(t)
		})
	}
	p := newPlace(t)
	_, err := p.unpack(t, Limits{}, true, archiveOf(t, e(reg, "d/.wh...", "")))
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("whiteout of ..: %v", err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	a := archiveOf(t, e(reg, "a", "12345"), e(reg, "b", "12345"))
	for _, c := range []struct {
		limits Limits
		ok     bool
	}{{Limits{Bytes: 10, Entries: 2}, true}, {Limits{Bytes: 9}, false}, {Limits{Entries: 1}, false}} {
		p := newPlace(t)
		_, err := p.unpack(t, c.limits, false, a)
		if c.ok != (err == nil) || !c.ok && !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", c.limits, err)
		}
	}
	// A limit counts for all layers together.
	p := newPlace(t)
	if _, err := p.unpack(t, Limits{Bytes: 15}, true, a, a); !fault.Is(err, fault.Invalid) {
		t.Errorf("two layers: %v", err)
	}
}

func TestDamagedAndCancelled(t *testing.T) {
	t.Parallel()
	a := archiveOf(t, e(reg, "a", strings.Repeat("x", 5000)))
	p := newPlace(t)
	for _, data := range [][]byte{a[:700], a[:3000], bytes.Repeat([]byte("x"), 5000)} {
		if _, err := p.unpack(t, Limits{}, false, data); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d bytes: %v", len(data), err)
		}
	}
	root, err := rootfs.Open(p.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(root, Limits{}).Tar(ctx, bytes.NewReader(a)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Whatever the bytes, as an archive or as a layer over another, nothing outside
// changes, and errors are the archive's fault.
func FuzzUnpack(f *testing.F) {
	f.Add(archiveOf(f, e(dir, "d", ""), e(reg, "d/a", "x"), e(sym, "l", "../outside"), e(reg, "l/secret", "x")))
	f.Add(archiveOf(f, e(hard, "h", "/outside/secret"), e(reg, "../x", "y")))
	f.Add(archiveOf(f, e(reg, "d/.wh..wh..opq", ""), e(reg, ".wh.l", ""), e(tar.TypeFifo, "p", "")))
	lower := archiveOf(f, e(dir, "d", ""), e(reg, "d/a", "1"), e(sym, "l", "../outside"), e(sym, "m", "/"), e(sym, "d/n", "m/l"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := newPlace(t)
		limits := Limits{Bytes: 1 << 20, Entries: 1000}
		for _, layers := range []bool{false, true} {
			if _, err := p.unpack(t, limits, layers, lower, data); err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("error %v is not the archive's", err)
			}
			p.checkOutside(t)
		}
	})
}
