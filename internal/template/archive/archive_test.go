// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

func tarOf(t testing.TB, names ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, n := range names {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestIsImage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		names []string
		want  bool
	}{
		{[]string{"x"}, false},
		{[]string{"etc/passwd", "manifest.json"}, false},
		{[]string{"0123.json", "0123/layer.tar", "manifest.json"}, true},
		{[]string{"./blobs/sha256/01", "./oci-layout", "./index.json"}, true},
		{[]string{"app/manifest.json", "usr/bin/x"}, false},
	} {
		got, err := IsImage(t.Context(), bytes.NewReader(tarOf(t, c.names...)))
		if err != nil || got != c.want {
			t.Errorf("%q: %v, %v", c.names, got, err)
		}
	}
	if _, err := IsImage(t.Context(), bytes.NewReader(tarOf(t))); !fault.Is(err, fault.Invalid) {
		t.Errorf("an archive of nothing: %v", err)
	}
	if _, err := IsImage(t.Context(), strings.NewReader(strings.Repeat("x", 600))); !fault.Is(err, fault.Invalid) {
		t.Errorf("no archive: %v", err)
	}
}

// imageIn writes documents into a directory and reads the image there.
func imageIn(t testing.TB, docs map[string]string) error {
	t.Helper()
	dir := t.TempDir()
	for name, text := range docs {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	layers, err := Layers(root)
	for _, l := range layers {
		r, lerr := l.Open()
		if lerr != nil {
			return lerr
		}
		if lerr := r.Verify(); lerr != nil {
			err = lerr
		}
		r.Close()
	}
	return err
}

const (
	emptySum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	config   = `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + emptySum + `"]}}`
	manifest = `[{"Config":"c.json","Layers":["l.tar"]}]`
)

func TestDockerImage(t *testing.T) {
	t.Parallel()
	good := map[string]string{"manifest.json": manifest, "c.json": config, "l.tar": ""}
	if err := imageIn(t, good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string][2]string{
		"not JSON":            {"manifest.json", "["},
		"no image":            {"manifest.json", "[]"},
		"two images":          {"manifest.json", `[{},{}]`},
		"config elsewhere":    {"manifest.json", `[{"Config":"../../../etc/passwd","Layers":["l.tar"]}]`},
		"layer elsewhere":     {"manifest.json", `[{"Config":"c.json","Layers":["/etc/passwd"]}]`},
		"layer is the root":   {"manifest.json", `[{"Config":"c.json","Layers":["/"]}]`},
		"more layers":         {"manifest.json", `[{"Config":"c.json","Layers":["l.tar","l.tar"]}]`},
		"no layers":           {"manifest.json", `[{"Config":"c.json"}]`},
		"large":               {"manifest.json", manifest + strings.Repeat(" ", maxDocument)},
		"bad config":          {"c.json", "{"},
		"other machine":       {"c.json", strings.Replace(config, "amd64", "riscv64", 1)},
		"other system":        {"c.json", strings.Replace(config, "linux", "windows", 1)},
		"bad digest":          {"c.json", strings.Replace(config, "sha256:e3", "sha256:zz", 1)},
		"another layer":       {"l.tar", "x"},
		"damaged compression": {"l.tar", "\x1f\x8b and no more"},
	} {
		docs := map[string]string{}
		for k, v := range good {
			docs[k] = v
		}
		docs[change[0]] = change[1]
		if err := imageIn(t, docs); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// An index that names itself ends.
func TestIndexLoop(t *testing.T) {
	t.Parallel()
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","size":1,"digest":"` + emptySum + `"}]}`
	for _, blob := range []string{"", index} {
		docs := map[string]string{"index.json": index, "blobs/sha256/" + strings.TrimPrefix(emptySum, "sha256:"): blob}
		if err := imageIn(t, docs); !fault.Is(err, fault.Invalid) {
			t.Errorf("blob %q: %v", blob, err)
		}
	}
}

func FuzzDecompress(f *testing.F) {
	for _, seed := range []string{"", "plain", "\x1f\x8b\x08", "\x28\xb5\x2f\xfd\x00\x00", "BZh9", "\xfd7zXZ\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decompress(bytes.NewReader(data))
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Error(err)
			}
			return
		}
		defer r.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20)) // any error will do, only no panic
	})
}

func FuzzLayers(f *testing.F) {
	f.Add(manifest, config, "")
	f.Add("", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"`+emptySum+`"}]}`, "")
	f.Fuzz(func(t *testing.T, first, second, layer string) {
		for _, docs := range []map[string]string{
			{"manifest.json": first, "c.json": second, "l.tar": layer},
			{"index.json": second, "blobs/sha256/" + strings.TrimPrefix(emptySum, "sha256:"): ""},
		} {
			if err := imageIn(t, docs); err != nil && !fault.Is(err, fault.Invalid) {
				t.Error(err)
			}
		}
	})
}
