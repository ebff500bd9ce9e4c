// SPDX-License-Identifier: Apache-2.0

package template

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/opencomputer/oc/internal/fault"
)

// testImage is an image of three layers with whiteouts of both kinds.
func testImage(t *testing.T) v1.Image {
	t.Helper()
	img := empty.Image
	for _, entries := range [][]entry{
		{dir("etc"), file("etc/lower", "1"), file("etc/gone", "1"), dir("opt"), file("opt/a", "1"), dir("opt/d"), file("opt/d/b", "1"), link("var/run", "/run")},
		{file("etc/.wh.gone", ""), dir("opt"), file("opt/.wh..wh..opq", ""), file("opt/c", "2"), file("var/run/pid", "2")},
		{file("etc/upper", "3"), entry{tar.Header{Name: "etc/hard", Typeflag: tar.TypeLink, Linkname: "etc/lower"}, ""}},
	} {
		data := archiveOf(t, entries...)
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestImportOfNothing is told what it is: else a download that broke off at once
// becomes a template in which no sandbox starts.
func TestImportOfNothing(t *testing.T) {
	b := newBuilder(t)
	for name, content := range map[string][]byte{"empty": nil, "an archive of nothing": archiveOf(t)} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := b.Import(t.Context(), path, nil)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "empty") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ociDir writes images as an OCI layout.
func ociDir(t *testing.T, images ...v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "oci")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if err := p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// dockerSave writes an image as "docker save" does.
func dockerSave(t *testing.T, img v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(path, name.MustParseReference("test/image:1"), img); err != nil {
		t.Fatal(err)
	}
	return path
}

func tarOf(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "oci.tar")
	if out, err := exec.CommandContext(t.Context(), "tar", "-cf", path, "-C", dir, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return path
}

func TestImportImages(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	img := testImage(t)
	oci := ociDir(t, img)
	var first Tree
	for _, c := range []struct{ what, path string }{
		{"OCI directory", oci}, {"OCI archive", tarOf(t, oci)}, {"docker save", dockerSave(t, img)},
	} {
		var said []string
		tree, err := b.Import(t.Context(), c.path, func(l string) { said = append(said, l) })
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if first.Hash == "" {
			first = tree
		}
		if tree != first {
			t.Errorf("%s: another tree than from the first form", c.what)
		}
		if !slices.Contains(said, "unpacking layer 2 of 3") {
			t.Errorf("%s: progress %q", c.what, said)
		}
	}
	for name, want := range map[string]string{"etc/lower": "1", "etc/upper": "3", "etc/hard": "1", "opt/c": "2", "run/pid": "2"} {
		if got := treeFile(t, b, first, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"etc/gone", "opt/a", "opt/d"} {
		if _, err := os.Lstat(filepath.Join(b.TreePath(first), name)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
}

func TestImportCompressed(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	plain := archiveOf(t, dir("etc"), file("etc/x", strings.Repeat("x", 10000)))
	want, err := importBytes(t, b, plain)
	if err != nil {
		t.Fatal(err)
	}
	var gz, zst bytes.Buffer
	gw := gzip.NewWriter(&gz)
	zw, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{gw, zw} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for what, data := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zst.Bytes()} {
		if got, err := importBytes(t, b, data); err != nil || got != want {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		_, err := importBytes(t, b, data[:len(data)/2])
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s, cut: %v", what, err)
		}
	}
	_, err = importBytes(t, b, []byte("\xfd7zXZ\x00 and more"))
	if f := fault.As(err); f.Kind != fault.Invalid || !strings.Contains(f.Hint, "xz") {
		t.Errorf("xz: %v", err)
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	img := testImage(t)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Architecture = "arm64"
	arm, err := mutate.ConfigFile(img, config)
	if err != nil {
		t.Fatal(err)
	}
	damaged := ociDir(t, img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(damaged, "blobs/sha256", digest.Hex)
	other := archiveOf(t, file("etc/forged", "x"))
	if err := os.WriteFile(blob, other, 0o600); err != nil {
		t.Fatal(err)
	}
	incomplete := ociDir(t, img)
	if err := os.Remove(filepath.Join(incomplete, "blobs/sha256", digest.Hex)); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("not an archive\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, path := range map[string]string{
		"nothing": filepath.Join(t.TempDir(), "none"), "empty directory": t.TempDir(), "text": text, "device": "/dev/null",
		"arm": dockerSave(t, arm), "two images": ociDir(t, img, arm), "damaged": damaged, "incomplete": incomplete,
	} {
		_, err := b.Import(t.Context(), path, nil)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if trees, err := b.Trees(); err != nil || len(trees) > 0 {
		t.Errorf("trees were made: %q, %v", trees, err)
	}
}

func TestImportTellsWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	path := filepath.Join(t.TempDir(), "a.tar")
	node := entry{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""}
	if err := os.WriteFile(path, archiveOf(t, node, file(".oc/x", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	var said []string
	if _, err := b.Import(t.Context(), path, func(l string) { said = append(said, l) }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"unpacking 100 %", "left out 1 device nodes: a sandbox has its own", "left out /.oc, which is reserved"} {
		if !slices.Contains(said, want) {
			t.Errorf("%q was not said in %q", want, said)
		}
	}
}

func TestImportCancelled(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, archiveOf(t, file("a", strings.Repeat("x", 1<<20)), file("b", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := b.Import(ctx, path, func(string) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
