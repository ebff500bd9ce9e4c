// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/archive"
	"github.com/opencomputer/oc/internal/template/rootfs"
	"github.com/opencomputer/oc/internal/template/unpack"
)

// Import makes a tree from a file: a root file system's tarball, what
// "docker save" has written, or an OCI image layout, as a tar archive or a
// directory. Archives may be compressed by gzip, zstd or bzip2. What is wrong
// with the file is a fault of kind Invalid.
//
// Device nodes and extended attributes that only mean something on another host
// are left out, which progress tells.
func (b *Builder) Import(ctx context.Context, path string, progress Progress) (Tree, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Tree{}, unreadable(err, path)
	}
	s, err := b.stageTree()
	if err != nil {
		return Tree{}, err
	}
	defer s.close()
	im, err := newImporter(ctx, s, progress)
	if err != nil {
		return Tree{}, err
	}
	defer im.root.Close()
	if st.IsDir() {
		err = im.image(path)
	} else {
		err = im.file(path)
	}
	if err != nil {
		return Tree{}, fmt.Errorf("import %s: %w", path, noSpace(err))
	}
	im.tellLeftOut()
	return b.publish(ctx, s, progress)
}

// unreadable makes the caller's wrong path a fault of theirs.
func unreadable(err error, path string) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return fault.Wrap(fault.Invalid, err, "%s cannot be read", path)
	}
	return err
}

// importer is one import.
type importer struct {
	ctx    context.Context
	s      *staging
	root   *rootfs.Root // the tree being made
	target *unpack.Target
	say    Progress
}

func newImporter(ctx context.Context, s *staging, say Progress) (*importer, error) {
	root, err := rootfs.Open(s.path("new/tree"))
	if err != nil {
		return nil, err
	}
	return &importer{ctx: ctx, s: s, root: root, target: unpack.New(root, unpack.Limits{}), say: say}, nil
}

// file imports an archive.
func (im *importer) file(path string) error {
	var isImage bool
	err := im.read(path, "", func(r io.Reader) (err error) {
		isImage, err = archive.IsImage(im.ctx, r)
		return err
	})
	if err != nil {
		return err
	}
	if !isImage {
		return im.read(path, "unpacking", func(r io.Reader) error { return im.target.Tar(im.ctx, r) })
	}
	dir := im.s.path("image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	outer, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer outer.Close()
	err = im.read(path, "reading the image", func(r io.Reader) error {
		return unpack.New(outer, unpack.Limits{}).Tar(im.ctx, r)
	})
	if err != nil {
		return err
	}
	return im.image(dir)
}

// read gives the content of a file, with the share of it that is read as
// progress if that has a title.
func (im *importer) read(path, title string, use func(io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return unreadable(err, path)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fault.New(fault.Invalid, "%s is neither a file nor a directory", path)
	}
	var in io.Reader = f
	if title != "" {
		in = &percentReader{r: f, size: st.Size(), last: -1, say: func(n int64) { im.say.say("%s %d %%", title, n) }}
	}
	r, err := archive.Decompress(in)
	if err != nil {
		return err
	}
	defer r.Close()
	return use(r)
}

// image imports the layers of an image that is in a directory.
func (im *importer) image(dir string) error {
	outer, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer outer.Close()
	layers, err := archive.Layers(outer)
	if err != nil {
		return err
	}
	for i, l := range layers {
		im.say.say("unpacking layer %d of %d", i+1, len(layers))
		if err := im.layer(l); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	return nil
}

func (im *importer) layer(l archive.Layer) error {
	r, err := l.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := im.target.Layer(im.ctx, r); err != nil {
		return err
	}
	return r.Verify()
}

func (im *importer) tellLeftOut() {
	left := im.target.Stats()
	if left.Devices > 0 {
		im.say.say("left out %d device nodes: a sandbox has its own", left.Devices)
	}
	if left.Xattrs > 0 {
		im.say.say("left out %d extended attributes of another host", left.Xattrs)
	}
	if im.root.Exists(reservedDir) {
		im.say.say("left out /%s, which is reserved", reservedDir)
	}
}

// percentReader tells how much of a known size was read, once per percent.
type percentReader struct {
	r          io.Reader
	size, done int64
	last       int64
	say        func(percent int64)
}

// Read implements io.Reader.
func (p *percentReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	if p.size > 0 {
		if now := min(p.done*100/p.size, 100); now > p.last {
			p.last = now
			p.say(now)
		}
	}
	return n, err
}
