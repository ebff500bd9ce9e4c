// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// testCapture is a capture with known bytes.
type testCapture struct {
	state, meta, pages []byte
	ranges             []engine.PageRange
}

// page is the granularity of page identities.
const page = 4096

func newCapture(rng *rand.Rand, state, meta, pages int) testCapture {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	source := rand.NewChaCha8(seed)
	fill := func(n int) []byte {
		b := make([]byte, n)
		_, _ = source.Read(b) // never fails
		return b
	}
	c := testCapture{state: fill(state), meta: fill(meta), pages: fill(pages)}
	for left := uint64(pages); left > 0; {
		n := min(left, page*(1+rng.Uint64N(8)))
		c.ranges = append(c.ranges, engine.PageRange{Source: rng.Uint32N(3), Offset: page * rng.Uint64N(1<<40), Length: n})
		left -= n
	}
	return c
}

func (c testCapture) capture() *engine.Capture {
	return &engine.Capture{
		State: bytes.NewReader(c.state), StateSize: int64(len(c.state)),
		Meta: bytes.NewReader(c.meta), MetaSize: int64(len(c.meta)),
		Pages: bytes.NewReader(c.pages), PagesSize: int64(len(c.pages)),
		Ranges: c.ranges, Close: func() {},
	}
}

func (c testCapture) file(name string) []byte {
	return map[string][]byte{FileState: c.state, FileMeta: c.meta, FilePages: c.pages}[name]
}

func testManifest(id string) Manifest {
	return Manifest{
		Checkpoint: id, Sandbox: "sb-00000001", Parent: "cp-0000000f", CreatedAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
		Requirements: engine.Requirements{Engine: "test 1", Arch: "amd64", CPUFeatures: []string{"aes", "sse2"}},
		Build:        "b1", ImageHash: "i1", TreeHash: "t1", Agent: 1,
		Shape: engine.Shape{CPUs: 2, MemoryBytes: 1 << 30, DiskBytes: 1 << 31, PidsMax: 100},
	}
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// openStore opens a store in memory: most tests do not need a disk's slowness.
func openStore(t testing.TB) *Dir {
	t.Helper()
	return openStoreIn(t, smallDisk(t, 64<<20))
}

func openStoreIn(t testing.TB, dir string) *Dir {
	t.Helper()
	d, err := OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// put writes a checkpoint, as the builds that wrote this format did.
func put(t testing.TB, d *Dir, id string, c testCapture) *Manifest {
	t.Helper()
	if err := Write(t.Context(), d.Path(id), testManifest(id), c.capture()); err != nil {
		t.Fatalf("Write: %v", err)
	}
	return open(t, d, id).Manifest()
}

func open(t testing.TB, d *Dir, id string) *Image {
	t.Helper()
	im, err := d.Open(id)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(im.Close)
	return im
}

// smallDisk mounts a file system of the size, in bytes.
func smallDisk(t testing.TB, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mounting a small disk (run the tests as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// staged lists what is in the staging directory.
func staged(t testing.TB, d *Dir) []string {
	t.Helper()
	es, err := os.ReadDir(d.staging(""))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	d := openStoreIn(t, t.TempDir())
	sizes := []int{0, 1, page, blockSize - 1, blockSize, blockSize + 1, copyChunk, copyChunk + blockSize + 7, 3*copyChunk + 1}
	for i, size := range sizes {
		id := fmt.Sprintf("cp-%08x", i)
		c := newCapture(rng, size, sizes[rng.IntN(len(sizes))], sizes[(i+4)%len(sizes)])
		m := put(t, d, id, c)
		if want := int64(len(c.state) + len(c.meta) + len(c.pages)); m.LogicalSize() != want {
			t.Errorf("size %d, want %d", m.LogicalSize(), want)
		}
		checkStored(t, d, id, m, c, rng)
	}
}

// checkStored reads a checkpoint back in every way that there is.
func checkStored(t *testing.T, d *Dir, id string, m *Manifest, c testCapture, rng *rand.Rand) {
	t.Helper()
	im := open(t, d, id)
	if err := im.Verify(t.Context()); err != nil {
		t.Errorf("Verify: %v", err)
	}
	got := im.Manifest()
	if got.Checkpoint != id || got.Sandbox != m.Sandbox || got.Parent != m.Parent || !got.CreatedAt.Equal(m.CreatedAt) ||
		got.Shape != m.Shape || !slices.Equal(got.Requirements.CPUFeatures, m.Requirements.CPUFeatures) || got.StoredSize() != m.StoredSize() {
		t.Errorf("manifest read back as %+v, was %+v", got, m)
	}
	if !slices.Equal(im.Ranges(), c.ranges) {
		t.Errorf("%d page ranges read back, %d written", len(im.Ranges()), len(c.ranges))
	}
	var stored int64
	for _, e := range []string{FileState, FileMeta, FilePages, fileSums, fileRanges} {
		st, err := os.Stat(filepath.Join(d.Path(id), e))
		if err != nil {
			t.Fatal(err)
		}
		stored += st.Size()
	}
	if stored != m.StoredSize() {
		t.Errorf("%d bytes on disk, the manifest says %d", stored, m.StoredSize())
	}
	for _, name := range []string{FileState, FileMeta, FilePages} {
		f, want := im.File(name), c.file(name)
		all, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
		if err != nil || !bytes.Equal(all, want) {
			t.Errorf("%s: read %d bytes, %v; want the %d written", name, len(all), err, len(want))
		}
		for range 50 {
			readSome(t, f, want, rng)
		}
	}
}

// readSome reads a random piece and demands io.ReaderAt's contract.
func readSome(t *testing.T, f *File, want []byte, rng *rand.Rand) {
	t.Helper()
	off := rng.IntN(len(want) + 10)
	p := make([]byte, 1+rng.IntN(3*blockSize))
	n, err := f.ReadAt(p, int64(off))
	exp := want[min(off, len(want)):min(off+len(p), len(want))]
	if n != len(exp) || !bytes.Equal(p[:n], exp) {
		t.Errorf("ReadAt(%d bytes at %d) of %d gave %d other bytes", len(p), off, len(want), n)
	}
	if short := n < len(p); short != errors.Is(err, io.EOF) || !short && err != nil {
		t.Errorf("ReadAt(%d bytes at %d) of %d: %d, %v", len(p), off, len(want), n, err)
	}
}

func TestReadAtNegative(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	put(t, d, "cp-1", newCapture(seeded(t), 10, 10, 0))
	if _, err := open(t, d, "cp-1").File(FileState).ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was read")
	}
}

func TestListAndDelete(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	rng := seeded(t)
	for _, id := range []string{"cp-2", "cp-1"} {
		put(t, d, id, newCapture(rng, 100, 100, page))
	}
	if err := os.Mkdir(d.Path("cp-3"), 0o700); err != nil { // damaged ones are listed, too
		t.Fatal(err)
	}
	if ids, err := d.List(); err != nil || !slices.Equal(ids, []string{"cp-1", "cp-2", "cp-3"}) {
		t.Fatalf("List: %v, %v", ids, err)
	}
	for _, id := range []string{"cp-1", "cp-1", "cp-3", "cp-none"} { // again and missing are nil
		if err := d.Delete(id); err != nil {
			t.Errorf("Delete(%s): %v", id, err)
		}
	}
	if ids, err := d.List(); err != nil || !slices.Equal(ids, []string{"cp-2"}) {
		t.Errorf("List: %v, %v", ids, err)
	}
	if left := staged(t, d); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
	if _, err := d.Open("cp-1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("Open of a deleted one: %v", err)
	}
}

// Ids come from requests: they never name anything outside the store.
func TestIDsAreNotPaths(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	c := newCapture(seeded(t), 1, 1, 0)
	for _, id := range []string{"", ".", "..", ".staging", "../x", "a/b", "a\x00"} {
		if _, err := d.Open(id); !fault.Is(err, fault.NotFound) {
			t.Errorf("Open(%q): %v", id, err)
		}
		if err := d.Delete(id); err == nil {
			t.Errorf("Delete(%q) succeeded", id)
		}
		if err := Write(t.Context(), d.Path(id), testManifest(id), c.capture()); err == nil {
			t.Errorf("Write to %q succeeded", id)
		}
	}
	if ids, err := d.List(); err != nil || len(ids) > 0 {
		t.Errorf("List: %v, %v", ids, err)
	}
}

// What has a checkpoint open keeps it, whoever deletes it.
func TestDeleteWhileOpen(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	rng := seeded(t)
	c := newCapture(rng, 1000, 1000, 5*blockSize)
	put(t, d, "cp-1", c)
	im := open(t, d, "cp-1")
	if err := d.Delete("cp-1"); err != nil {
		t.Fatal(err)
	}
	if err := im.Verify(t.Context()); err != nil {
		t.Errorf("Verify: %v", err)
	}
	readSome(t, im.File(FilePages), c.pages, rng)
}

func TestWriteTwiceKeepsTheFirst(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	rng := seeded(t)
	c := newCapture(rng, 1000, 1000, page)
	m := put(t, d, "cp-1", c)
	if err := Write(t.Context(), d.Path("cp-1"), testManifest("cp-1"), newCapture(rng, 1, 1, 0).capture()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Write: %v", err)
	}
	checkStored(t, d, "cp-1", m, c, rng)
}

// cut is a source that fails at an offset.
type cut struct {
	io.ReaderAt
	at   int64
	fail error
}

func (c cut) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > c.at {
		return 0, c.fail
	}
	return c.ReaderAt.ReadAt(p, off)
}

func TestFailedWriteLeavesNothing(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	c := newCapture(seeded(t), 100, 100, 3*copyChunk)
	errSource := errors.New("source broke")
	capt := c.capture()
	capt.Pages = cut{capt.Pages, copyChunk, errSource}
	if err := Write(t.Context(), d.Path("cp-1"), testManifest("cp-1"), capt); !errors.Is(err, errSource) {
		t.Errorf("Write of a broken source: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, d.Path("cp-2"), testManifest("cp-2"), c.capture()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Write: %v", err)
	}
	if ids, err := d.List(); err != nil || len(ids) > 0 {
		t.Errorf("List: %v, %v", ids, err)
	}
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	const room = 2 << 20
	d := openStoreIn(t, smallDisk(t, room))
	rng := seeded(t)
	for _, pages := range []int{room + page, room - page, 10 * room} {
		err := Write(t.Context(), d.Path("cp-big"), testManifest("cp-big"), newCapture(rng, 100, 100, pages).capture())
		if f := fault.As(err); err == nil || f.Kind != fault.Unavailable || f.Hint == "" {
			t.Errorf("Write of %d bytes on a disk of %d: %v", pages, room, err)
		}
	}
	c := newCapture(rng, 100, 100, room/2) // there is room: nothing is left of the others
	checkStored(t, d, "cp-fits", put(t, d, "cp-fits", c), c, rng)
}

// What a deletion, or a build that wrote here, left half done goes with the next
// start.
func TestOpenDirRemovesWhatIsStaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openStoreIn(t, dir)
	put(t, d, "cp-1", newCapture(seeded(t), 10, 10, page))
	if err := errors.Join(os.Rename(d.Path("cp-1"), d.staging("deleted-cp-1")), os.Mkdir(d.staging("cp-2"), 0o700)); err != nil {
		t.Fatal(err)
	}
	d = openStoreIn(t, dir)
	if ids, err := d.List(); err != nil || len(ids) > 0 {
		t.Errorf("List: %v, %v", ids, err)
	}
	if left := staged(t, d); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
}

func TestVerifyIsCancellable(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	put(t, d, "cp-1", newCapture(seeded(t), 100, 100, page))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(t, d, "cp-1").Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify: %v", err)
	}
}
