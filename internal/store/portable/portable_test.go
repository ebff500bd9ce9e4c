// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

const page = engine.PageSize

// contents is a parcel with known bytes.
type contents struct {
	manifest []byte
	ranges   []engine.PageRange
	files    [len(names)][]byte
}

// newContents makes files of the sizes, of runs of random and of zero bytes.
func newContents(rng *rand.Rand, sizes ...int) contents {
	c := contents{manifest: []byte(`{"checkpoint": "cp-1"}`)}
	for i, size := range sizes {
		for len(c.files[i]) < size {
			b := make([]byte, min(size-len(c.files[i]), 1+rng.IntN(5*page)))
			if rng.IntN(3) > 0 {
				random(rng, b)
			}
			c.files[i] = append(c.files[i], b...)
		}
	}
	for left := uint64(len(c.files[4])); left > 0; {
		n := min(left, page*(1+rng.Uint64N(8)))
		c.ranges = append(c.ranges, engine.PageRange{Source: rng.Uint32N(3), Offset: page * rng.Uint64N(1<<40), Length: n})
		left -= n
	}
	return c
}

func random(rng *rand.Rand, b []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
}

func (c contents) parcel() Parcel {
	p := Parcel{Manifest: c.manifest, Ranges: c.ranges}
	for i, b := range c.files {
		p.Files = append(p.Files, File{Name: names[i], Size: int64(len(b)), Copy: func(_ context.Context, w io.Writer) error {
			_, err := io.Copy(w, bytes.NewReader(b))
			return err
		}})
	}
	return p
}

func (c contents) total() (n int64) {
	for _, b := range c.files {
		n += int64(len(b))
	}
	return n
}

func (c contents) check(t *testing.T, r *Received) {
	t.Helper()
	if !bytes.Equal(r.Manifest, c.manifest) || !slices.Equal(r.Ranges, c.ranges) || len(r.Files) != len(names) {
		t.Errorf("manifest %q, %d ranges, %d files", r.Manifest, len(r.Ranges), len(r.Files))
	}
	for i, name := range names {
		got, err := io.ReadAll(r.Files[name])
		if err != nil || !bytes.Equal(got, c.files[i]) {
			t.Errorf("%s: %d other bytes, %v", name, len(got), err)
		}
	}
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func small() contents {
	c := newContents(rand.New(rand.NewPCG(1, 1)), 200, 50, 100, 0, 3*page)
	copy(c.files[4], bytes.Repeat([]byte("page "), len(c.files[4])))
	return c
}

func packed(t testing.TB, c contents) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(t.Context(), &b, c.parcel(), nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// checkNothingLeft fails where there is a file in dir, with a name or without.
func checkNothingLeft(t testing.TB, dir string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil || len(es) > 0 {
		t.Errorf("left in %s: %v, %v", dir, es, err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, dir+"/") {
			t.Errorf("left open: %s", to)
		}
	}
}

// monotonic checks what progress is told.
func monotonic(t *testing.T, want int64) (progress func(done, total int64), end func()) {
	t.Helper()
	var last int64
	return func(done, total int64) {
			if done < last || done > total || total != want {
				t.Errorf("progress %d of %d after %d, want %d in all", done, total, last, want)
			}
			last = done
		}, func() {
			t.Helper()
			if last != want {
				t.Errorf("progress ends at %d of %d", last, want)
			}
		}
}

// How much there is in all is told before anything is written, for who has to say it
// before the file.
func TestTotalComesFirst(t *testing.T) {
	t.Parallel()
	c := newContents(seeded(t), 10, 10, 10, 10, 3*page)
	told := int64(-1)
	w := writerFunc(func(b []byte) (int, error) {
		if told != c.total() {
			t.Errorf("told %d bytes before the first write, there are %d", told, c.total())
		}
		return len(b), nil
	})
	if err := Write(t.Context(), w, c.parcel(), func(_, total int64) { told = total }); err != nil {
		t.Error(err)
	}
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestRoundTripThroughPipe(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	for _, sizes := range [][]int{
		{0, 0, 0, 0, 0},
		{1, 1, 1, 1, page},
		{maxFrame - 100, 1, page, 1, 3 * page},
		{maxFrame, maxFrame + 1, maxFrame - 1, 0, maxFrame},
		{3*maxFrame + 5, 0, 70000, 3, 40*maxFrame + page},
	} {
		c := newContents(rng, sizes...)
		pr, pw := io.Pipe()
		result := make(chan error, 1)
		wrote, endWrite := monotonic(t, c.total())
		go func() {
			err := Write(t.Context(), pw, c.parcel(), wrote)
			pw.CloseWithError(err)
			result <- err
		}()
		dir := t.TempDir()
		read, endRead := monotonic(t, c.total())
		r, err := Read(t.Context(), pr, dir, Limits{Bytes: c.total()}, read)
		if err := errors.Join(err, <-result); err != nil {
			t.Fatalf("%v: %v", sizes, err)
		}
		endWrite()
		endRead()
		c.check(t, r)
		r.Close()
		checkNothingLeft(t, dir)
		if a, b := packed(t, c), packed(t, c); !bytes.Equal(a, b) {
			t.Error("the same parcel twice gives different bytes")
		}
	}
}

func TestZeroPagesTakeNoRoom(t *testing.T) {
	t.Parallel()
	c := newContents(seeded(t), 0, 0, 0, 0, 64<<20)
	clear(c.files[4])
	copy(c.files[4][33<<20:], "something")
	b := packed(t, c)
	if len(b) > 200<<10 { // most of it page ranges
		t.Errorf("64 MiB of zeroes are %d bytes", len(b))
	}
	r, err := Read(t.Context(), bytes.NewReader(b), t.TempDir(), Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.check(t, r)
	var st unix.Stat_t
	if err := unix.Fstat(int(r.Files[FilePages].Fd()), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("they take %d bytes on the disk, %v", st.Blocks*512, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*Parcel){
		"manifest too large": func(p *Parcel) { p.Manifest = make([]byte, MaxManifest+1) },
		"file missing":       func(p *Parcel) { p.Files = p.Files[:4] },
		"order":              func(p *Parcel) { p.Files[0], p.Files[1] = p.Files[1], p.Files[0] },
		"negative size":      func(p *Parcel) { p.Files[0].Size = -1 },
		"pages not covered":  func(p *Parcel) { p.Ranges = p.Ranges[1:] },
		"file too short":     func(p *Parcel) { p.Files[2].Size++ },
		"file too long":      func(p *Parcel) { p.Files[2].Size-- },
		"too long, unminded": func(p *Parcel) {
			p.Files[2].Copy = func(_ context.Context, w io.Writer) error {
				_, _ = w.Write(make([]byte, p.Files[2].Size))
				_, _ = w.Write(make([]byte, 1))
				return nil
			}
		},
		"half a page": func(p *Parcel) {
			p.Ranges = []engine.PageRange{{Length: page / 2}, {Length: page * 3 / 2}}
		},
	} {
		p := small().parcel()
		change(&p)
		if err := Write(t.Context(), io.Discard, p, nil); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestErrorsOfBothEnds(t *testing.T) {
	t.Parallel()
	errEnd := errors.New("end broke")
	c := newContents(seeded(t), 0, 0, 0, 0, 12*maxFrame)
	p := c.parcel()
	pages := p.Files[4].Copy
	p.Files[4].Copy = func(ctx context.Context, w io.Writer) error {
		if err := pages(ctx, w); err != nil {
			return err
		}
		return errEnd
	}
	if err := Write(t.Context(), io.Discard, p, nil); !errors.Is(err, errEnd) {
		t.Errorf("the source failed, Write said %v", err)
	}
	b := packed(t, c)
	for _, n := range []int{0, 10, 1000, len(b) / 2, len(b) - 1, len(b)} {
		w := &failing{after: n, err: errEnd}
		if err := Write(t.Context(), w, c.parcel(), nil); n < len(b) && !errors.Is(err, errEnd) {
			t.Errorf("w failed after %d bytes, Write said %v", n, err)
		}
		dir := t.TempDir()
		_, err := Read(t.Context(), io.MultiReader(bytes.NewReader(b[:n]), &failing{err: errEnd}), dir, Limits{}, nil)
		if !errors.Is(err, errEnd) {
			t.Errorf("r failed after %d bytes, Read said %v", n, err)
		}
		checkNothingLeft(t, dir)
	}
}

// failing fails after so many bytes.
type failing struct {
	after int
	err   error
}

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func (f *failing) Write(b []byte) (int, error) {
	if f.after -= len(b); f.after < 0 {
		return 0, f.err
	}
	return len(b), nil
}

func TestCancel(t *testing.T) {
	t.Parallel()
	c := newContents(seeded(t), 0, 0, 0, 0, 12*maxFrame)
	b := packed(t, c)
	for _, at := range []int64{0, 1, 5 * maxFrame, 10 * maxFrame} {
		ctx, cancel := context.WithCancel(t.Context())
		stop := func(done, _ int64) {
			if done >= at {
				cancel()
			}
		}
		if at == 0 {
			cancel()
		}
		if err := Write(ctx, io.Discard, c.parcel(), stop); !errors.Is(err, context.Canceled) {
			t.Errorf("Write cancelled at %d: %v", at, err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		if at == 0 {
			cancel()
		}
		dir := t.TempDir()
		_, err := Read(ctx, bytes.NewReader(b), dir, Limits{}, stop)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Read cancelled at %d: %v", at, err)
		}
		checkNothingLeft(t, dir)
		cancel()
	}
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

func TestNoSpace(t *testing.T) {
	t.Parallel()
	const room = 8 << 20
	dir := smallDisk(t, room)
	c := newContents(seeded(t), 0, 0, 0, 0, room/2)
	random(seeded(t), c.files[4])
	b := packed(t, c)
	refused := func(what string, r io.Reader) {
		t.Helper()
		_, err := Read(t.Context(), r, dir, Limits{}, nil)
		if f := fault.As(err); err == nil || f.Kind != fault.Unavailable || f.Hint == "" || !strings.Contains(f.Message, dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	big := packed(t, newContents(seeded(t), 0, 0, 0, 0, room+page))
	refused("too large", bytes.NewReader(big))
	checkNothingLeft(t, dir)
	// Others take the room meanwhile.
	filler := filepath.Join(dir, "filler")
	half := len(b) / 2
	refused("filled up", io.MultiReader(bytes.NewReader(b[:half]), &then{do: func() error { return fill(filler) }}, bytes.NewReader(b[half:])))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, dir)
	r, err := Read(t.Context(), bytes.NewReader(b), dir, Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.check(t, r)
	r.Close()
}

// then is empty and does something when it is read.
type then struct{ do func() error }

func (r *then) Read([]byte) (int, error) {
	if err := r.do(); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// fill writes a file until the disk is full.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = f.Write(make([]byte, page))
	}
	if !errors.Is(err, unix.ENOSPC) {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
