// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/fault"
)

// What is unpacked is the same checkpoint in the first format.
func TestUnpack(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	s := openStore(t, &buckettest.Memory{})
	c := newGuest(rng, 300).content()
	im, err := s.Image(t.Context(), mustPut(t, s, "cp-1", c, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	dir := filepath.Join(t.TempDir(), "cp-1")
	if err := Unpack(t.Context(), im, dir); err != nil {
		t.Fatal(err)
	}
	got, err := OpenLegacy(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	compare(t, got, c, rng)
	if err := got.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if m, want := got.Manifest(), im.Manifest(); m.Checkpoint != "cp-1" || m.SizeBytes != want.SizeBytes || !m.CreatedAt.Equal(want.CreatedAt) {
		t.Errorf("it is %+v, was %+v", m, want)
	}
}

// Of a damaged checkpoint nothing is unpacked.
func TestUnpackDamaged(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	x.flip(t, x.firstPacks[0], len("OCPACK2\n"))
	im, err := openStore(t, x.b).Image(t.Context(), x.ids[0])
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	dir := filepath.Join(t.TempDir(), "cp-1")
	if err := Unpack(t.Context(), im, dir); !fault.Is(err, fault.Damaged) {
		t.Errorf("Unpack: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}
