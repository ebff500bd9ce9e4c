// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

// Names in an image's directory: of the OCI image layout (image-layout.md of
// its specification), and of what "docker save" writes.
const (
	ociLayout      = "oci-layout"
	ociIndex       = "index.json"
	dockerManifest = "manifest.json"
)

const (
	maxDocument = 4 << 20 // bytes of a manifest, index or configuration
	maxLayers   = 512
	maxNesting  = 4        // indexes within indexes
	maxPadding  = 64 << 20 // bytes that may follow the end of a layer's archive
)

// Layer is one layer of an image: a tar archive, maybe compressed.
type Layer struct {
	root   *rootfs.Root
	path   string
	diffID v1.Hash // of the archive without compression
}

// Layers gives the layers, lowest first, of the one Linux image for this
// processor architecture in a directory. The directory stays in use by them. An
// image that is not there, not unique or not well-formed is a fault of kind
// Invalid.
func Layers(root *rootfs.Root) ([]Layer, error) {
	if root.Exists(ociIndex) {
		return ociLayers(root)
	}
	if root.Exists(dockerManifest) {
		return dockerLayers(root)
	}
	return nil, fault.New(fault.Invalid, "there is no container image: neither %s nor %s", ociIndex, dockerManifest)
}

// Open opens the layer, without its compression.
func (l Layer) Open() (*LayerReader, error) {
	f, err := l.root.OpenFile(l.path)
	if err != nil {
		return nil, missing(err, l.path)
	}
	r, err := Decompress(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &LayerReader{file: f, content: r, sum: sha256.New(), want: l.diffID}, nil
}

// LayerReader reads a layer and checks it.
type LayerReader struct {
	file    *os.File
	content io.ReadCloser
	sum     hash.Hash
	want    v1.Hash
}

// Read implements io.Reader.
func (l *LayerReader) Read(p []byte) (int, error) {
	n, err := l.content.Read(p)
	l.sum.Write(p[:n])
	return n, err
}

// Verify reads what is left and compares all that was read with the image's
// configuration. A difference is a fault of kind Invalid.
func (l *LayerReader) Verify() error {
	n, err := io.Copy(io.Discard, io.LimitReader(l, maxPadding+1))
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "a layer of the image is damaged")
	}
	if n > maxPadding {
		return fault.New(fault.Invalid, "a layer of the image goes on after its end")
	}
	if got := hex.EncodeToString(l.sum.Sum(nil)); got != l.want.Hex {
		return fault.New(fault.Invalid, "a layer of the image is damaged: it is sha256:%s and should be %s", got, l.want)
	}
	return nil
}

// Close closes the layer.
func (l *LayerReader) Close() error {
	return errors.Join(l.content.Close(), l.file.Close())
}

// dockerLayers reads what "docker save" has written before it wrote OCI
// layouts, too.
func dockerLayers(root *rootfs.Root) ([]Layer, error) {
	data, err := root.ReadFile(dockerManifest, maxDocument)
	if err != nil {
		return nil, missing(err, dockerManifest)
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(data, &images); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the image's %s is damaged", dockerManifest)
	}
	if len(images) != 1 {
		return nil, notOne(len(images))
	}
	config, err := root.ReadFile(images[0].Config, maxDocument)
	if err != nil {
		return nil, missing(err, images[0].Config)
	}
	return pair(root, config, images[0].Layers)
}

func ociLayers(root *rootfs.Root) ([]Layer, error) {
	data, err := root.ReadFile(ociIndex, maxDocument)
	if err != nil {
		return nil, missing(err, ociIndex)
	}
	found := map[v1.Hash]bool{}
	if err := findImages(root, data, found, maxNesting); err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, notOne(len(found))
	}
	var manifest *v1.Manifest
	for digest := range found {
		if data, err = blob(root, digest); err != nil {
			return nil, err
		}
		if manifest, err = v1.ParseManifest(bytes.NewReader(data)); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the image's manifest %s is damaged", digest)
		}
	}
	config, err := blob(root, manifest.Config.Digest)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, l := range manifest.Layers {
		paths = append(paths, blobPath(l.Digest))
	}
	return pair(root, config, paths)
}

// findImages notes the manifests of images for this architecture that an index
// names, also through further indexes.
func findImages(root *rootfs.Root, data []byte, found map[v1.Hash]bool, depth int) error {
	if depth == 0 {
		return fault.New(fault.Invalid, "the image's indexes are nested too deep")
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the image's index is damaged")
	}
	if len(index.Manifests) > maxLayers {
		return fault.New(fault.Invalid, "the image's index names too many images")
	}
	for _, d := range index.Manifests {
		switch {
		case d.MediaType.IsIndex():
			nested, err := blob(root, d.Digest)
			if err != nil {
				return err
			}
			if err := findImages(root, nested, found, depth-1); err != nil {
				return err
			}
		case d.Platform == nil || d.Platform.OS == "linux" && d.Platform.Architecture == "amd64":
			found[d.Digest] = true
		}
	}
	return nil
}

// pair puts the layers' files and the digests of the configuration together.
func pair(root *rootfs.Root, config []byte, paths []string) ([]Layer, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the image's configuration is damaged")
	}
	if c.OS != "linux" && c.OS != "" || c.Architecture != "amd64" && c.Architecture != "" {
		return nil, fault.New(fault.Invalid, "the image is for %s/%s, sandboxes are linux/amd64", c.OS, c.Architecture).
			WithHint("Pull it for linux/amd64 first.")
	}
	if len(paths) == 0 || len(paths) > maxLayers || len(paths) != len(c.RootFS.DiffIDs) {
		return nil, fault.New(fault.Invalid, "the image has %d layers, its configuration %d", len(paths), len(c.RootFS.DiffIDs))
	}
	layers := make([]Layer, len(paths))
	for i, p := range paths {
		layers[i] = Layer{root: root, path: p, diffID: c.RootFS.DiffIDs[i]}
	}
	return layers, nil
}

// blob reads a document and compares it with its digest.
func blob(root *rootfs.Root, digest v1.Hash) ([]byte, error) {
	data, err := root.ReadFile(blobPath(digest), maxDocument)
	if err != nil {
		return nil, missing(err, blobPath(digest))
	}
	if sum := sha256.Sum256(data); digest.Algorithm != "sha256" || hex.EncodeToString(sum[:]) != digest.Hex {
		return nil, fault.New(fault.Invalid, "the image's document %s is damaged", digest)
	}
	return data, nil
}

func blobPath(digest v1.Hash) string {
	return fmt.Sprintf("blobs/%s/%s", digest.Algorithm, digest.Hex)
}

func missing(err error, name string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Invalid, err, "the image is not complete: %.200q is missing", name)
	}
	return fault.Wrap(fault.Invalid, err, "%.200q of the image cannot be read", name)
}

func notOne(n int) error {
	if n == 0 {
		return fault.New(fault.Invalid, "there is no image for linux/amd64")
	}
	return fault.New(fault.Invalid, "there are %d images, a template is made from one", n).
		WithHint("Save one image alone.")
}
