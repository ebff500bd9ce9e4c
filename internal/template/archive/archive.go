// SPDX-License-Identifier: Apache-2.0

// Package archive reads what people have root file systems in: tarballs,
// compressed or not, and container images as "docker save" and the OCI image
// layout hold them.
//
// Everything read is hostile: documents are bounded in size, images in layers
// and nesting, and files are opened inside their root only. Each document of an
// OCI layout is compared with the digest it is named by.
//
// The package says what there is and opens it; it writes nothing and knows
// nothing of templates.
package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

// maxWindow bounds the memory that a zstd stream can make its reader use, in
// bytes. It is the most that zstd itself writes unless told "--ultra --long".
const maxWindow = 128 << 20

// Decompress gives the content of a stream that is compressed by gzip, zstd or
// bzip2, or not at all. Closing it does not close r. Other compressions are a
// fault of kind Invalid.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	magic, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the archive's compression (gzip) is damaged")
		}
		return z, nil
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the archive's compression (zstd) is damaged")
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(br)), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, fault.New(fault.Invalid, "archives compressed by xz cannot be read").
			WithHint("Decompress it first: xz -dk FILE")
	}
	return io.NopCloser(br), nil
}

// maxSniff bounds how many entries IsImage looks at.
const maxSniff = 100_000

// IsImage tells whether a tar archive holds a container image, in either form,
// rather than a root file system. It reads as far as it must to know.
func IsImage(ctx context.Context, r io.Reader) (bool, error) {
	tr := tar.NewReader(r)
	for i := range maxSniff {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && i == 0 {
			return false, fault.New(fault.Invalid, "the file is empty, or an archive of nothing")
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fault.Wrap(fault.Invalid, err, "the file is not a tar archive, or is damaged")
		}
		name := rootfs.Clean(h.Name)
		if name == ociLayout || name == dockerManifest {
			return true, nil
		}
		switch top, _, _ := strings.Cut(name, "/"); top {
		case "bin", "dev", "etc", "home", "lib", "opt", "root", "sbin", "usr", "var":
			return false, nil
		}
	}
	return false, nil
}
