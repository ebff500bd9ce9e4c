// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

// patience bounds what a test waits for; it is only used up by a failure.
const patience = 20 * time.Second

// serveHere runs a keeper in this process until the test ends.
func serveHere(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "k.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, l, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return path
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// socketPair gives two connected stream sockets, closed with the test.
func socketPair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// takeOne gets the single descriptor held under the name.
func takeOne(t *testing.T, c *Client, name string) *os.File {
	t.Helper()
	files, err := c.Get(t.Context(), name)
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("%d descriptors, want 1", len(files))
	}
	t.Cleanup(func() { files[0].Close() })
	return files[0]
}

func expectRead(t *testing.T, f *os.File, want string) {
	t.Helper()
	must(t, f.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(f, buf); err != nil || string(buf) != want {
		t.Fatalf("read %q, %v; want %q", buf, err, want)
	}
}

// expectEOF sees that the other end has been closed everywhere.
func expectEOF(t *testing.T, f *os.File) {
	t.Helper()
	must(t, f.SetReadDeadline(time.Now().Add(patience)))
	if n, err := f.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %d, %v; want the end of file", n, err)
	}
}

func expectKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("error %v, want a fault of kind %s", err, kind)
	}
}

func TestSocketOutlivesItsOwner(t *testing.T) {
	t.Parallel()
	path := serveHere(t)
	host, guest := socketPair(t)
	first := dial(t, path)
	must(t, first.Put(t.Context(), "sb-1/agent", host))
	must(t, host.Close())
	first.Close()

	// While nobody but the keeper has the host's end, the guest may write.
	_, err := guest.WriteString("queued")
	must(t, err)

	got := takeOne(t, dial(t, path), "sb-1/agent")
	expectRead(t, got, "queued")
	_, err = got.WriteString("answer")
	must(t, err)
	expectRead(t, guest, "answer")
}

func TestSeveralDescriptorsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	c := dial(t, serveHere(t))
	var ends []*os.File
	var conns []syscall.Conn
	for range MaxFiles {
		a, b := socketPair(t)
		ends, conns = append(ends, b), append(conns, a)
	}
	must(t, c.Put(t.Context(), "many", conns...))
	files, err := c.Get(t.Context(), "many")
	must(t, err)
	if len(files) != MaxFiles {
		t.Fatalf("%d descriptors, want %d", len(files), MaxFiles)
	}
	for i, f := range files {
		_, err := fmt.Fprintf(f, "%d", i)
		must(t, err)
		expectRead(t, ends[i], fmt.Sprint(i))
		must(t, f.Close())
	}
	expectKind(t, c.Put(t.Context(), "none"), fault.Invalid)
	expectKind(t, c.Put(t.Context(), "too-many", append(conns, conns[0])...), fault.Invalid)
}

func TestPutReplacesAndDropCloses(t *testing.T) {
	t.Parallel()
	c := dial(t, serveHere(t))
	oldHost, oldGuest := socketPair(t)
	newHost, newGuest := socketPair(t)
	must(t, c.Put(t.Context(), "x", oldHost))
	must(t, oldHost.Close())
	must(t, c.Put(t.Context(), "x", newHost))
	must(t, newHost.Close())
	expectEOF(t, oldGuest)

	must(t, c.Drop(t.Context(), "x"))
	expectEOF(t, newGuest)
	must(t, c.Drop(t.Context(), "x"))
	_, err := c.Get(t.Context(), "x")
	expectKind(t, err, fault.NotFound)
}

// TestPutLeavesTheMode sees that handing over does not make a descriptor block
// under the hands of whoever else uses it.
func TestPutLeavesTheMode(t *testing.T) {
	t.Parallel()
	c := dial(t, serveHere(t))
	host, _ := socketPair(t)
	must(t, c.Put(t.Context(), "x", host))
	takeOne(t, c, "x")
	// A read deadline works only on a descriptor that does not block.
	must(t, host.SetReadDeadline(time.Now().Add(-time.Second)))
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v, want a passed deadline", err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	c := dial(t, serveHere(t))
	host, _ := socketPair(t)
	long := string(slices.Repeat([]byte("n"), MaxName))
	for _, name := range []string{"a", "sb-00000000/agent", "~!x", long} {
		must(t, c.Put(t.Context(), name, host))
	}
	for _, name := range []string{"", " ", "a b", "a\n", "ä", long + "n"} {
		expectKind(t, c.Put(t.Context(), name, host), fault.Invalid)
		_, err := c.Get(t.Context(), name)
		expectKind(t, err, fault.Invalid)
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	c := dial(t, serveHere(t))
	if names, err := c.List(t.Context()); err != nil || names == nil || len(names) != 0 {
		t.Fatalf("empty list: %v, %v", names, err)
	}
	host, _ := socketPair(t)
	// More than two pages of names of full length.
	var want []string
	for i := range 2*maxReply/MaxName + 50 {
		name := fmt.Sprintf("%0*d", MaxName, i)
		want = append(want, name)
		must(t, c.Put(t.Context(), name, host))
	}
	got, err := c.List(t.Context())
	must(t, err)
	if !slices.Equal(got, want) {
		t.Fatalf("%d names, want %d", len(got), len(want))
	}
}

func TestClientsAtOnce(t *testing.T) {
	t.Parallel()
	path := serveHere(t)
	var wg sync.WaitGroup
	for i := range 8 {
		c := dial(t, path)
		host, _ := socketPair(t)
		wg.Go(func() {
			for j := range 50 {
				name := fmt.Sprintf("c%d", i)
				if err := c.Put(t.Context(), name, host); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				files, err := c.Get(t.Context(), name)
				if err != nil || len(files) != 1 {
					t.Errorf("get: %d, %v", len(files), err)
					return
				}
				files[0].Close()
				if j%10 == 9 {
					if err := c.Drop(t.Context(), name); err != nil {
						t.Errorf("drop: %v", err)
					}
				}
			}
		})
	}
	// One client from many goroutines takes turns.
	shared := dial(t, path)
	for i := range 8 {
		wg.Go(func() {
			if _, err := shared.Get(t.Context(), fmt.Sprintf("absent%d", i)); !fault.Is(err, fault.NotFound) {
				t.Errorf("get: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestFull(t *testing.T) {
	t.Parallel()
	h := newHoldings(3)
	t.Cleanup(h.clear)
	memfds := func(n int) []int {
		var fds []int
		for range n {
			fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
			must(t, err)
			fds = append(fds, fd)
		}
		return fds
	}
	steps := []struct {
		name string
		n    int
		want status
	}{
		{"a", 2, statusOK},
		{"b", 2, statusFull},
		{"b", 1, statusOK},
		{"a", 2, statusOK}, // in place of two others
		{"a", 3, statusFull},
		{"b", 2, statusFull},
	}
	for i, s := range steps {
		fds := memfds(s.n)
		old, st := h.put(s.name, fds)
		if st != s.want {
			t.Errorf("step %d: status %d, want %d", i, st, s.want)
		}
		closeAll(old)
		if st != statusOK {
			closeAll(fds)
		}
	}
	closeAll(h.drop("a"))
	if old, st := h.put("c", memfds(2)); st != statusOK || old != nil {
		t.Errorf("after a drop: status %d", st)
	}
}

func TestStopOnlyWhenEmpty(t *testing.T) {
	t.Parallel()
	path := serveHere(t)
	c, other := dial(t, path), dial(t, path)
	host, _ := socketPair(t)
	must(t, c.Put(t.Context(), "x", host))
	expectKind(t, c.Stop(t.Context()), fault.Conflict)
	must(t, c.Drop(t.Context(), "x"))
	must(t, other.Stop(t.Context()))
	// The end reaches every client, idle ones too.
	for _, c := range []*Client{c, other} {
		select {
		case <-c.Done():
		case <-time.After(patience):
			t.Fatal("a client did not see the end of the keeper")
		}
	}
	if _, err := c.List(t.Context()); err == nil {
		t.Fatal("a call after the end succeeded")
	}
}

func TestCancelledCallBreaksTheClient(t *testing.T) {
	t.Parallel()
	// A keeper that accepts and never answers.
	path := filepath.Join(t.TempDir(), "deaf.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	must(t, err)
	defer l.Close()
	c := dial(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := c.List(ctx)
		result <- err
	}()
	peer, err := l.AcceptUnix()
	must(t, err)
	defer peer.Close()
	_, err = peer.Read(make([]byte, 16)) // the request is under way
	must(t, err)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatalf("call: %v", err)
	}
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("the client did not break")
	}
}
