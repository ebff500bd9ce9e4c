// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

// pair is a pair of connected sockets of packets.
func pair(t testing.TB) (helper, pager *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "helper"), os.NewFile(uintptr(fds[1]), "pager")
}

// serving starts a pager, and gives the helper's end and how the pager ends.
func serving(t testing.TB, from Sources) (conn *os.File, end <-chan error) {
	t.Helper()
	conn, theirs := pair(t)
	ended := make(chan error, 1)
	go func() { ended <- Serve(theirs, from) }()
	return conn, ended
}

// linked is a client of a pager, both closed with the test.
func linked(t *testing.T, from Sources) *Client {
	t.Helper()
	conn, end := serving(t, from)
	c, err := Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-end; err != nil {
			t.Errorf("the pager: %v", err)
		}
	})
	return c
}

// random is so many bytes that say where they are.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b) // never fails
	return b
}

func sources(state, meta, pages []byte) Sources {
	return Sources{State: bytes.NewReader(state), Meta: bytes.NewReader(meta), Pages: bytes.NewReader(pages)}
}

func TestFilesAreTheSources(t *testing.T) {
	t.Parallel()
	state, meta, pages := random(3<<20+17), []byte(nil), random(9<<20)
	c := linked(t, sources(state, meta, pages))
	for _, x := range []struct {
		f    *File
		want []byte
	}{{c.State(), state}, {c.Meta(), meta}, {c.Pages(), pages}} {
		if x.f.Size() != int64(len(x.want)) {
			t.Errorf("size %d, want %d", x.f.Size(), len(x.want))
		}
		got, err := io.ReadAll(io.NewSectionReader(x.f, 0, x.f.Size()+10))
		if err != nil || !bytes.Equal(got, x.want) {
			t.Errorf("%d other bytes, or %v", len(got), err)
		}
		whole := make([]byte, len(x.want)+5) // over several slots and the end
		if n, err := x.f.ReadAt(whole, 0); n != len(x.want) || !errors.Is(err, io.EOF) || !bytes.Equal(whole[:n], x.want) {
			t.Errorf("read at once: %d, %v", n, err)
		}
		if n, err := x.f.ReadAt(nil, 0); n != 0 || err != nil {
			t.Errorf("nothing: %d, %v", n, err)
		}
		if n, err := x.f.ReadAt(make([]byte, 1), 1<<62); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("far beyond the end: %d, %v", n, err)
		}
		if _, err := x.f.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("before the start there is something")
		}
	}
}

func TestConcurrentReads(t *testing.T) {
	t.Parallel()
	pages := random(8 << 20)
	c := linked(t, sources(nil, nil, pages))
	var wg sync.WaitGroup
	for i := range 3 * slotCount {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for range 50 {
				off := rng.IntN(len(pages))
				p := make([]byte, 1+rng.IntN(min(100<<10, len(pages)-off)))
				if n, err := c.Pages().ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, pages[off:off+n]) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	wg.Wait()
}

// gated is a file whose reads wait.
type gated struct {
	*bytes.Reader
	entered chan struct{}
	open    chan struct{}
}

func (g gated) ReadAt(p []byte, off int64) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	return g.Reader.ReadAt(p, off)
}

// As many reads of a slot's length as there are slots are made at once, and one
// more waits for its turn.
func TestReadsInFlight(t *testing.T) {
	t.Parallel()
	if slotCount < 8 || slotBytes < 1<<20 {
		t.Fatalf("%d slots of %d bytes", slotCount, slotBytes)
	}
	pages := random((slotCount + 1) * slotBytes)
	g := gated{Reader: bytes.NewReader(pages), entered: make(chan struct{}), open: make(chan struct{})}
	c := linked(t, Sources{State: bytes.NewReader(nil), Meta: bytes.NewReader(nil), Pages: g})
	var wg sync.WaitGroup
	for i := range slotCount + 1 {
		wg.Go(func() {
			p := make([]byte, slotBytes)
			if _, err := c.Pages().ReadAt(p, int64(i*slotBytes)); err != nil || !bytes.Equal(p, pages[i*slotBytes:(i+1)*slotBytes]) {
				t.Errorf("read %d: %v", i, err)
			}
		})
	}
	for range slotCount {
		<-g.entered
	}
	select {
	case <-g.entered:
		t.Error("more reads than slots")
	default:
	}
	close(g.open)
	<-g.entered
	wg.Wait()
}

// failing is a file that cannot be read.
type failing struct {
	size int64
	err  error
}

func (f failing) Size() int64                       { return f.size }
func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestErrorsComeOver(t *testing.T) {
	t.Parallel()
	damaged := fault.New(fault.Internal, "checkpoint cp-1 is damaged: block 7").WithHint("verify it")
	c := linked(t, Sources{
		State: failing{100, damaged}, Meta: failing{100, errors.New("the disk is away" + strings.Repeat("!", 10000))}, Pages: failing{100, nil},
	})
	p := make([]byte, 10)
	_, err := c.State().ReadAt(p, 0)
	var f *fault.Fault
	if !errors.As(err, &f) || f.Kind != damaged.Kind || f.Message != damaged.Message || f.Hint != damaged.Hint || err.Error() != damaged.Error() {
		t.Errorf("the fault came over as %#v", err)
	}
	if _, err := c.Meta().ReadAt(p, 0); err == nil || !strings.Contains(err.Error(), "the disk is away") || len(err.Error()) > 2*maxText {
		t.Errorf("the error came over as %v", err)
	}
	if n, err := c.Pages().ReadAt(p, 0); n != 0 || err == nil || !strings.Contains(err.Error(), io.ErrUnexpectedEOF.Error()) {
		t.Errorf("a file shorter than its size: %d, %v", n, err)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	conn, theirs := pair(t)
	why := fault.Wrap(fault.NotFound, errors.New("no directory"), "checkpoint cp-1 has no data in the store")
	refused := make(chan error, 1)
	go func() { refused <- Refuse(theirs, why) }()
	c, err := Dial(conn)
	if c != nil || !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), why.Error()) {
		t.Errorf("refused with %v", err)
	}
	if err := <-refused; err != nil {
		t.Error(err)
	}
}

// When the pager dies, each read under way and each later one fails.
func TestPagerDies(t *testing.T) {
	t.Parallel()
	for name, reset := range map[string]bool{"end": false, "reset": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dies(t, reset)
		})
	}
}

func dies(t *testing.T, reset bool) {
	t.Helper()
	conn, theirs := pair(t)
	other, err := packets(theirs)
	if err != nil {
		t.Fatal(err)
	}
	c := dialFake(t, conn, other, 64<<20)
	defer c.Close()
	errs := make(chan error)
	for i := range 2 * slotCount { // also those that wait for a slot
		go func() {
			_, err := c.Pages().ReadAt(make([]byte, 10), int64(i))
			errs <- err
		}()
	}
	b := make([]byte, maxPacket)
	if _, err := other.Read(b); err != nil {
		t.Fatal(err)
	}
	for range slotCount - 1 {
		if !reset { // with requests that nobody has read it is no end of file
			if _, err := other.Read(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	other.Close()
	for range 2 * slotCount {
		if err := <-errs; err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "the pager is gone") {
			t.Errorf("a read under way: %v", err)
		}
	}
	if _, err := c.State().ReadAt(make([]byte, 1), 0); err == nil || !strings.Contains(err.Error(), "the pager is gone") {
		t.Errorf("a later read: %v", err)
	}
}

// dialFake connects to a pager that is the test's own.
func dialFake(t testing.TB, conn *os.File, other *net.UnixConn, size int64) *Client {
	t.Helper()
	type dialled struct {
		c   *Client
		err error
	}
	got := make(chan dialled, 1)
	go func() {
		c, err := Dial(conn)
		got <- dialled{c, err}
	}()
	if _, err := awaitGreeting(other); err != nil {
		t.Fatal(err)
	}
	shared, mem, err := memory(slotCount * minSlotBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	defer func() { _ = unix.Munmap(mem) }() // there is one
	h := hello{version: 1, slots: slotCount, slotBytes: minSlotBytes, sizes: [fileCount]int64{size, size, size}}
	if _, _, err := other.WriteMsgUnix(h.encode(), unix.UnixRights(int(shared.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	d := <-got
	if d.err != nil {
		t.Fatal(d.err)
	}
	return d.c
}

func TestClosedClient(t *testing.T) {
	t.Parallel()
	g := gated{Reader: bytes.NewReader(random(10)), entered: make(chan struct{}), open: make(chan struct{})}
	conn, end := serving(t, Sources{State: g, Meta: g, Pages: g})
	c, err := Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := c.Meta().ReadAt(make([]byte, 10), 0)
		read <- err
	}()
	<-g.entered
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, errClosed) {
		t.Errorf("a read under way: %v", err)
	}
	select {
	case err := <-end:
		t.Errorf("the pager ended with a read under way: %v", err)
	default:
	}
	close(g.open)
	if err := <-end; err != nil {
		t.Errorf("the pager: %v", err)
	}
}

// A pair of which one does not begin ends without an error that nobody made.
func TestNobodyThere(t *testing.T) {
	t.Parallel()
	conn, end := serving(t, sources(nil, nil, nil))
	conn.Close()
	if err := <-end; err != nil {
		t.Errorf("a pager without a helper: %v", err)
	}
	conn, theirs := pair(t)
	theirs.Close()
	if _, err := Dial(conn); err == nil || !strings.Contains(err.Error(), "the pager is gone") {
		t.Errorf("a helper without a pager: %v", err)
	}
}

// exchange sends a packet to a pager and reads its reply.
func exchange(t *testing.T, c *net.UnixConn, p []byte) []byte {
	t.Helper()
	b := make([]byte, maxPacket)
	_, err := c.Write(p)
	n := 0
	if err == nil {
		n, err = c.Read(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// A wrong request gets an error, and the next one is served.
func TestWrongRequests(t *testing.T) {
	t.Parallel()
	g := gated{Reader: bytes.NewReader(random(100)), entered: make(chan struct{}), open: make(chan struct{})}
	conn, end := serving(t, Sources{State: bytes.NewReader(random(100)), Meta: g, Pages: bytes.NewReader(nil)})
	c, err := packets(conn)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := decodeHello(exchange(t, c, greeting{version: Version + 7}.encode())); err != nil || h.version != Version {
		t.Fatalf("hello %+v, %v", h, err)
	}
	if _, err := c.Write(request{file: fileMeta, slot: 3, length: 1, id: 1}.encode()); err != nil {
		t.Fatal(err)
	}
	<-g.entered
	for name, r := range map[string]request{
		"file":       {file: fileCount, length: 1},
		"slot":       {slot: slotCount, length: 1},
		"nothing":    {length: 0},
		"much":       {length: slotBytes + 1},
		"end":        {length: 2, offset: 99},
		"beyond":     {length: 1, offset: 101},
		"far":        {length: 1, offset: 1<<64 - 1},
		"empty file": {file: filePages, length: 1},
		"busy":       {slot: 3, length: 1},
	} {
		r.id = 7
		if got, err := decodeReply(exchange(t, c, r.encode())); err != nil || got.id != 7 || got.err == nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if got, err := decodeReply(exchange(t, c, request{length: 100, id: 8}.encode())); err != nil || got.err != nil || got.id != 8 || got.n != 100 {
		t.Errorf("a right request: %+v, %v", got, err)
	}
	close(g.open)
	b := make([]byte, maxPacket)
	n, err := c.Read(b)
	if got, derr := decodeReply(b[:n]); err != nil || derr != nil || got.id != 1 || got.err != nil {
		t.Errorf("the read that was under way: %+v, %v, %v", got, err, derr)
	}
	// What is no request ends it.
	if _, ok := decodeRefusal(exchange(t, c, []byte{kindRequest, 1, 2})); !ok {
		t.Error("nonsense is not refused")
	}
	if err := <-end; !errors.Is(err, errPacket) {
		t.Errorf("the pager: %v", err)
	}
	c.Close()
}

// The helper can neither write the memory nor change its length.
func TestMemoryIsThePagers(t *testing.T) {
	t.Parallel()
	c := linked(t, sources(random(10), nil, nil))
	if _, err := c.State().ReadAt(make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	fd := int(c.shared.Fd())
	if _, err := unix.Pwrite(fd, []byte("x"), 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("writing: %v", err)
	}
	if mem, err := unix.Mmap(fd, 0, slotBytes, unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("mapped for writing")
		_ = unix.Munmap(mem)
	}
	for _, size := range []int64{0, 64 << 20} {
		if err := unix.Ftruncate(fd, size); !errors.Is(err, syscall.EPERM) {
			t.Errorf("%d bytes long: %v", size, err)
		}
	}
}

// BenchmarkRead is what a piece of 64 KiB costs over the link.
func BenchmarkRead(b *testing.B) {
	conn, end := serving(b, sources(nil, nil, random(64<<20)))
	c, err := Dial(conn)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if _, err := c.Pages().ReadAt(p, int64(i%1024)*int64(len(p))); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(c.Close(), <-end); err != nil {
		b.Error(err)
	}
}
