// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
)

// image is all pages of a capture, as a later one is compared with.
type image struct {
	ranges []engine.PageRange
	pages  []byte
}

// imageOf puts a capture on a base, nil where it had none, together.
func imageOf(t testing.TB, c *engine.Capture, on *image) *image {
	t.Helper()
	held := make([]byte, c.CopiedBytes())
	if _, err := c.Pages.ReadAt(held, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	im := &image{ranges: c.Ranges}
	if c.Copied == nil {
		im.pages = held
		return im
	}
	old := on.byIdentity()
	runs := c.Copied
	for _, r := range c.Ranges {
		for off := uint64(0); off < r.Length; off += engine.PageSize {
			page := int64(len(im.pages) / engine.PageSize)
			for len(runs) > 0 && runs[0].Page+runs[0].Count <= page {
				runs = runs[1:]
			}
			from := old[identity{r.Source, r.Offset + off}]
			if len(runs) > 0 && runs[0].Page <= page {
				from = held[runs[0].At+(page-runs[0].Page)*engine.PageSize:][:engine.PageSize]
			}
			if from == nil {
				t.Fatalf("page %d is neither copied nor in the base", page)
			}
			im.pages = append(im.pages, from...)
		}
	}
	if int64(len(im.pages)) != c.PagesSize {
		t.Fatalf("%d bytes of pages, want %d", len(im.pages), c.PagesSize)
	}
	return im
}

type identity struct {
	source uint32
	offset uint64
}

func (im *image) byIdentity() map[identity][]byte {
	out, rest := map[identity][]byte{}, im.pages
	for _, r := range im.ranges {
		for off := uint64(0); off < r.Length; off += engine.PageSize {
			out[identity{r.Source, r.Offset + off}] = rest[:engine.PageSize]
			rest = rest[engine.PageSize:]
		}
	}
	return out
}

// base is what a capture is compared with.
func (im *image) base() *engine.Base {
	b := &engine.Base{Ranges: im.ranges, Seed: 0x0c}
	for rest := im.pages; len(rest) > 0; rest = rest[engine.PageSize:] {
		b.Hashes = append(b.Hashes, xxh3.HashSeed(rest[:engine.PageSize], b.Seed))
	}
	return b
}

// complete is a capture that has all pages of an image.
func (im *image) complete(c *engine.Capture) *engine.Capture {
	whole := *c
	whole.Pages, whole.Copied = bytes.NewReader(im.pages), nil
	return &whole
}

// on is a capture that copies what differs from an image.
func on(im *image) engine.CaptureOptions {
	opts := inMemory
	opts.Base, opts.Expect = im.base(), 8<<20
	return opts
}

// change has a guest write 2 MB to its disk and 2 MB to its memory.
func change(t *testing.T, g *enginetest.Guest) {
	t.Helper()
	g.Must(t, "for f in /root/new /dev/shm/new; do dd if=/dev/urandom of=$f bs=1M count=2 2>/dev/null; sha256sum $f; done >/root/new.sum")
}

// A capture on the one before copies little more than what changed, and the two
// together are all of the sandbox; also where a restore lies between them, for
// pages keep their identity.
func TestCaptureOnBase(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, 32)
	capture := func(opts engine.CaptureOptions) *engine.Capture {
		t.Helper()
		c, err := host.Capture(t.Context(), g.Process, opts)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := capture(inMemory)
	im := imageOf(t, first, nil)
	first.Close()
	if first.Copied != nil || first.PagesSize < 32<<20 {
		t.Errorf("without a base %d of %d bytes were copied", first.CopiedBytes(), first.PagesSize)
	}
	for _, when := range []string{"running on", "restored", "restored again"} {
		change(t, g)
		c := capture(on(im))
		if n := c.CopiedBytes(); c.Copied == nil || n < 4<<20 || n > c.PagesSize/3 {
			t.Errorf("%s: %d of %d bytes were copied", when, n, c.PagesSize)
		}
		t.Logf("%s: %d of %d KB copied in %d runs", when, c.CopiedBytes()>>10, c.PagesSize>>10, len(c.Copied))
		intact(t, g, counter)
		im = imageOf(t, c, im)
		r, clones := restore(t, keep(t, im.complete(c)), g, 1)
		g = clones[0]
		intact(t, g, counter)
		g.Must(t, "sha256sum -c /root/new.sum")
		awaitLoaded(t, r)
		intact(t, g, counter)
	}
}

// A capture that leaves its generation frozen can be on a base, too.
func TestCaptureHeldOnBase(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	counter := fill(t, g, 16)
	first, err := host.Capture(t.Context(), g.Process, inMemory)
	if err != nil {
		t.Fatal(err)
	}
	im := imageOf(t, first, nil)
	first.Close()
	change(t, g)
	c, held, err := host.CaptureHeld(t.Context(), g.Process, on(im), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if n := c.CopiedBytes(); c.Copied == nil || n > c.PagesSize/2 {
		t.Errorf("%d of %d bytes were copied", n, c.PagesSize)
	}
	whole := imageOf(t, c, im)
	dir := keep(t, whole.complete(c))
	if err := held.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	intact(t, g, counter)
	_, clones := restore(t, dir, g, 1)
	intact(t, clones[0], counter)
	clones[0].Must(t, "sha256sum -c /root/new.sum")
}

// A base that cannot be is refused, and the sandbox does not notice.
func TestCaptureOnImpossibleBase(t *testing.T) {
	t.Parallel()
	g := host.Start(t, enginetest.Shape())
	opts := inMemory
	opts.Base = &engine.Base{Ranges: []engine.PageRange{{Length: engine.PageSize}}}
	if _, err := host.Capture(t.Context(), g.Process, opts); err == nil {
		t.Error("captured")
	}
	if _, _, err := host.CaptureHeld(t.Context(), g.Process, opts, time.Minute); err == nil {
		t.Error("captured and held")
	}
	g.Must(t, "true")
}
