// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
)

// handOver gives a content, captured on a stored checkpoint, as another process
// gets it.
func handOver(t *testing.T, s *Store, c content, base string) (where string, files []*os.File) {
	t.Helper()
	im, b := openBase(t, s, base)
	defer im.Close()
	capt := c.capture(b)
	inFile := func(r io.ReaderAt) *os.File {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err == nil {
			_, err = io.Copy(f, io.NewSectionReader(r, 0, 1<<30))
		}
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	capt.State, capt.Meta, capt.Pages = inFile(capt.State), inFile(capt.Meta), inFile(capt.Pages)
	where, files, ok, err := s.Captured(capt, im, "cp-2")
	if err != nil || !ok {
		t.Fatalf("Captured: %v, %v", ok, err)
	}
	return where, files
}

func newDirStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: t.TempDir(), State: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// A capture that is not stored yet reads as what was captured, together with the
// checkpoint that it is based on.
func TestReachCaptured(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	s := newDirStore(t)
	g := newGuest(rng, 200)
	base := mustPut(t, s, "cp-1", g.content(), "")
	g.run(20)
	c := g.content()
	where, files := handOver(t, s, c, base)
	got, err := Reach(t.Context(), where, files)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	compare(t, got, c, rng)
}

// Without its base a capture still gives what it holds of the engine's state, and
// an error, never other bytes, for the pages.
func TestReachCapturedWithoutItsBase(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	s := newDirStore(t)
	g := newGuest(rng, 200)
	base := mustPut(t, s, "cp-1", g.content(), "")
	g.run(20)
	c := g.content()
	where, files := handOver(t, s, c, base)
	if err := s.Delete(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	got, err := Reach(t.Context(), where, files)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	state := make([]byte, got.File(FileState).Size())
	if _, err := got.File(FileState).ReadAt(state, 0); err != nil || !bytes.Equal(state, c.files[0]) {
		t.Errorf("the state: %v", err)
	}
	b := make([]byte, engine.PageSize)
	for off := int64(0); off < got.File(FilePages).Size(); off += engine.PageSize {
		if n, err := got.File(FilePages).ReadAt(b, off); err == nil {
			t.Fatalf("%d bytes of page %d", n, off/engine.PageSize)
		}
	}
}
