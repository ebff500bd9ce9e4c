// SPDX-License-Identifier: Apache-2.0

package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

func TestImageIsDeterministic(t *testing.T) {
	t.Parallel()
	entries := []entry{
		file("usr/bin/tool", strings.Repeat("x", 5000)), file("usr/lib/a", "a"), dir("var/empty"),
		link("bin", "usr/bin"), file("z/last", ""),
	}
	entries[1].PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1"}
	var hashes []string
	for range 2 { // two nodes
		b := newBuilder(t)
		tree := mustImport(t, b, entries...)
		img, err := b.Image(t.Context(), tree, []byte("agent"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(img.Path)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != img.Hash || int64(len(data)) != img.SizeBytes {
			t.Errorf("the image is not what it says")
		}
		hashes = append(hashes, img.Hash)

		// Made again from nothing, it is the same.
		if err := b.RemoveImage(img.Hash); err != nil {
			t.Fatal(err)
		}
		again, err := b.Image(t.Context(), tree, []byte("agent"))
		if err != nil || again != img {
			t.Errorf("again: %+v, %v, want %+v", again, err, img)
		}
		other, err := b.Image(t.Context(), tree, []byte("other agent"))
		if err != nil || other.Hash == img.Hash {
			t.Errorf("other agent: %+v, %v", other, err)
		}
	}
	if hashes[0] != hashes[1] {
		t.Errorf("two nodes made %s and %s", hashes[0], hashes[1])
	}
}

func TestImageIsMadeOnce(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	tree := mustImport(t, b, file("etc/x", "x"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := b.Image(t.Context(), tree, []byte("agent")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	hashes, err := b.Images()
	if err != nil || len(hashes) != 1 {
		t.Fatalf("images %q, %v", hashes, err)
	}
	img, err := b.FindImage(hashes[0])
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Image(t.Context(), tree, []byte("agent")); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(img.Path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the image was made again: %v", err)
	}
}

// An image that went missing or was cut is not handed out.
func TestImageMissingOrCut(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	tree := mustImport(t, b, file("etc/x", "x"))
	for name, harm := range map[string]func(path string) error{
		"missing": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 100) },
	} {
		img, err := b.Image(t.Context(), tree, []byte("agent"))
		if err != nil {
			t.Fatal(err)
		}
		if err := harm(img.Path); err != nil {
			t.Fatal(err)
		}
		again, err := b.Image(t.Context(), tree, []byte("agent"))
		if err != nil || again != img {
			t.Errorf("%s: %+v, %v", name, again, err)
		}
		if err := b.VerifyImage(t.Context(), img.Hash); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyImage(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	img, err := b.Image(t.Context(), mustImport(t, b, file("etc/x", "x")), []byte("agent"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(img.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0xff}, 2000); err != nil {
		t.Fatal(err)
	}
	wantKind(t, b.VerifyImage(t.Context(), img.Hash), fault.Internal)
	wantKind(t, b.VerifyImage(t.Context(), strings.Repeat("0", 64)), fault.NotFound)
}

func TestAddImage(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	data := []byte("some image")
	sum := sha256.Sum256(data)
	hash := hex.EncodeToString(sum[:])
	for name, c := range map[string]struct {
		data  string
		limit int64
	}{"other": {"other image", 100}, "cut": {"some imag", 100}, "large": {"some image", 9}} {
		_, err := b.AddImage(t.Context(), strings.NewReader(c.data), hash, c.limit)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		_, err = b.FindImage(hash)
		wantKind(t, err, fault.NotFound)
	}
	img, err := b.AddImage(t.Context(), bytes.NewReader(data), hash, 10)
	if err != nil || img.Hash != hash || img.SizeBytes != 10 {
		t.Errorf("%+v, %v", img, err)
	}
	_, err = b.AddImage(t.Context(), bytes.NewReader(data), "../../etc/x", 10)
	wantKind(t, err, fault.Invalid)
}

func TestImageOfMissingTree(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	tree := mustImport(t, b, file("etc/x", "x"))
	for range 2 {
		if err := b.RemoveTree(tree.Hash); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.Image(t.Context(), tree, nil)
	wantKind(t, err, fault.NotFound)
	_, err = b.Image(t.Context(), Tree{Hash: "../x"}, nil)
	wantKind(t, err, fault.Invalid)
}

func TestImageCancelled(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	tree := mustImport(t, b, file("etc/x", "x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Image(ctx, tree, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
