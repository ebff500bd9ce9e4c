// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencomputer/oc/internal/fault"
)

// What a checkpoint rests on, kept by the hash of its content.
const (
	kindEngine = "engines"
	kindImage  = "images"
)

// partBytes is how much of such a file is an object.
const partBytes = 16 << 20

// partKey names a part; the object's id makes it unique, as every key must be.
func partKey(kind, sum, id string, part int) string {
	return fmt.Sprintf("%s/%s/%s-%d", kind, sum, id, part)
}

// blobs declares the parts that may be written for an object.
func (p *put) blobs(id string) []string {
	var keys []string
	for _, f := range []struct{ kind, sum, path string }{
		{kindEngine, p.req.Manifest.Build, p.req.EnginePath}, {kindImage, p.req.Manifest.ImageHash, p.req.ImagePath},
	} {
		if st, err := os.Stat(f.path); err == nil {
			for i := range (st.Size() + partBytes - 1) / partBytes {
				keys = append(keys, partKey(f.kind, f.sum, id, int(i)))
			}
		}
	}
	return keys
}

// blob gives a file that a pinned checkpoint keeps, or keeps it.
func (p *put) blob(ctx context.Context, kind, sum, path string) (*Blob, error) {
	if path == "" {
		return nil, nil
	}
	for _, base := range p.w.Bases() {
		if b := p.s.catalog.blob(base.ID, kind, sum); b != nil && !p.s.spoiled.hasOf(b) {
			return b, nil
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	defer f.Close()
	b := &Blob{}
	h := sha256.New()
	buf := make([]byte, partBytes)
	for i := 0; ; i++ {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			_, _ = h.Write(buf[:n])
			b.Size += int64(n)
			o, err := p.objectAt(ctx, partKey(kind, sum, p.w.ID(), i), encoder.EncodeAll(buf[:n], nil))
			if err != nil {
				return nil, err
			}
			b.Parts = append(b.Parts, o)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			if got := hex.EncodeToString(h.Sum(nil)); got != sum {
				return nil, fault.New(fault.Internal, "%s is damaged: its SHA-256 is %s", path, got).
					WithHint("the disk under the data directory may be failing")
			}
			return b, nil
		case err != nil:
			return nil, fmt.Errorf("store: %w", err)
		}
	}
}

// fetchBlob writes a file that a checkpoint keeps to w, verified.
func (im *Image) fetchBlob(ctx context.Context, b *Blob, sum string, w io.Writer, progress func(done, total int64)) error {
	if b == nil {
		return fault.New(fault.Internal, "checkpoint %s does not keep the file %s that it needs", im.manifest.Checkpoint, sum)
	}
	h := sha256.New()
	done := int64(0)
	for _, o := range b.Parts {
		raw, err := im.vault.object(ctx, im.manifest.Checkpoint, o)
		if err != nil {
			return err
		}
		if raw, err = decoder.DecodeAll(raw, nil); err != nil {
			return Damaged(im.manifest.Checkpoint, "its object %s: %v", o.Key, err)
		}
		_, _ = h.Write(raw)
		if _, err := w.Write(raw); err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if done += int64(len(raw)); progress != nil {
			progress(done, b.Size)
		}
	}
	if hex.EncodeToString(h.Sum(nil)) != sum {
		return Damaged(im.manifest.Checkpoint, "the file that it keeps as %s is another", sum)
	}
	return nil
}

// FetchEngine writes the binary of the build that wrote the checkpoint to w. It
// has failed if its content is not what Manifest.Build says.
func (im *Image) FetchEngine(ctx context.Context, w io.Writer, progress func(done, total int64)) error {
	return im.fetchBlob(ctx, im.manifest.Engine, im.manifest.Build, w, progress)
}

// FetchImage writes the EROFS image that the checkpoint runs on to w, as
// FetchEngine.
func (im *Image) FetchImage(ctx context.Context, w io.Writer, progress func(done, total int64)) error {
	return im.fetchBlob(ctx, im.manifest.Image, im.manifest.ImageHash, w, progress)
}
