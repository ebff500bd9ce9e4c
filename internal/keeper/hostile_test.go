// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rawDial connects without the client's manners.
func rawDial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// exchangeRaw sends one packet and gives the status of the reply.
func exchangeRaw(t *testing.T, c *net.UnixConn, data []byte, fds ...int) status {
	t.Helper()
	must(t, send(c, data, fds))
	must(t, c.SetReadDeadline(time.Now().Add(patience)))
	p, err := receive(c, make([]byte, maxReply+1))
	must(t, err)
	closeAll(p.fds)
	if len(p.data) < headerLen || p.data[0] != protocolVersion {
		t.Fatalf("reply %q", p.data)
	}
	return status(p.data[1])
}

// TestMalformedMessages sends what no client sends; the keeper answers each and
// keeps what it holds and no descriptor more.
func TestMalformedMessages(t *testing.T) {
	path := serveHere(t)
	c, raw := dial(t, path), rawDial(t, path)
	host, guest := socketPair(t)
	must(t, c.Put(t.Context(), "kept", host))
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	must(t, err)
	defer closeAll([]int{fd})
	many := make([]int, MaxFiles+1)
	for i := range many {
		many[i] = fd
	}

	before := openFiles(t)
	cases := []struct {
		name string
		data string
		fds  []int
		want status
	}{
		{"other version", "\x02Gx", nil, statusVersion},
		{"other version with descriptor", "\x02Px", many[:1], statusVersion},
		{"no operation", "\x01", nil, statusInvalid},
		{"unknown operation", "\x01Zx", nil, statusInvalid},
		{"put without descriptor", "\x01Px", nil, statusInvalid},
		{"put of too many", "\x01Pkept", many, statusInvalid},
		{"put without name", "\x01P", many[:1], statusInvalid},
		{"get with descriptor", "\x01Gkept", many[:2], statusInvalid},
		{"drop with descriptor", "\x01Dkept", many[:1], statusInvalid},
		{"list with descriptor", "\x01L", many[:1], statusInvalid},
		{"stop with name", "\x01Skept", nil, statusInvalid},
		{"bad name", "\x01Gke pt", nil, statusInvalid},
		{"long name", "\x01G" + strings.Repeat("n", MaxName+1), nil, statusInvalid},
		{"huge", "\x01P" + strings.Repeat("n", 60000), many[:1], statusInvalid},
	}
	for _, tc := range cases {
		if got := exchangeRaw(t, raw, []byte(tc.data), tc.fds...); got != tc.want {
			t.Errorf("%s: status %d, want %d", tc.name, got, tc.want)
		}
	}
	waitFor(t, "what came with them is closed", func() bool { return openFiles(t) == before })
	must(t, host.Close())
	_, err = guest.WriteString("still")
	must(t, err)
	expectRead(t, takeOne(t, c, "kept"), "still")
}

// TestAbruptClients has clients vanish at every point of an exchange.
func TestAbruptClients(t *testing.T) {
	path := serveHere(t)
	c := dial(t, path)
	host, _ := socketPair(t)
	must(t, c.Put(t.Context(), "kept", host))
	before := openFiles(t)
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	must(t, err)
	for range 20 {
		rawDial(t, path).Close() // says nothing
		put := rawDial(t, path)  // does not wait for the answer
		must(t, send(put, request{opPut, "left"}.encode(), []int{fd}))
		put.Close()
		get := rawDial(t, path) // leaves descriptors on their way
		must(t, send(get, request{opGet, "kept"}.encode(), nil))
		get.Close()
	}
	closeAll([]int{fd})
	// Each of those ends on its own time: wait for the last.
	waitFor(t, "the put of a vanished client", func() bool {
		names, err := c.List(t.Context())
		return err == nil && len(names) == 2
	})
	must(t, c.Drop(t.Context(), "left"))
	waitFor(t, "all descriptors to be closed", func() bool {
		_ = c.Drop(t.Context(), "left")
		return openFiles(t) == before
	})
}

// TestNothingLeaks counts the descriptors of the process through everything.
func TestNothingLeaks(t *testing.T) {
	before := openFiles(t)
	t.Run("use", func(t *testing.T) {
		path := serveHere(t)
		c := dial(t, path)
		a, b := socketPair(t)
		for range 100 {
			must(t, c.Put(t.Context(), "x", a, b))
			files, err := c.Get(t.Context(), "x")
			must(t, err)
			for _, f := range files {
				must(t, f.Close())
			}
			must(t, c.Put(t.Context(), "y", a))
			must(t, c.Drop(t.Context(), "y"))
		}
		must(t, c.Put(t.Context(), "z", a, b)) // held at the end
	})
	waitFor(t, "every descriptor is closed again", func() bool { return openFiles(t) == before })
}

// TestClientsAreBounded fills the keeper with connections; it serves again when
// some have gone.
func TestClientsAreBounded(t *testing.T) {
	t.Parallel()
	path := serveHere(t)
	var conns []*net.UnixConn
	for range maxClients {
		c := rawDial(t, path)
		if st := exchangeRaw(t, c, []byte("\x01L")); st != statusOK {
			t.Fatalf("status %d", st)
		}
		conns = append(conns, c)
	}
	extra := rawDial(t, path)
	must(t, extra.SetReadDeadline(time.Now().Add(patience)))
	if _, err := receive(extra, make([]byte, 16)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("one client too many was not turned away")
	}
	conns[0].Close()
	waitFor(t, "a free place", func() bool {
		c, err := Dial(t.Context(), path)
		must(t, err)
		defer c.Close()
		_, err = c.List(t.Context())
		return err == nil
	})
}

// TestOtherUsersAreRefused connects as another user.
func TestOtherUsersAreRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root: this one connects as another user")
	}
	path := serveHere(t)
	// Let nothing but the keeper itself keep the user out.
	must(t, os.Chmod(path, 0o777))
	must(t, os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755))
	fd, err := dialAs(path, 65534)
	must(t, err)
	defer closeAll([]int{fd})
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	_ = unix.Send(fd, []byte("\x01L"), unix.MSG_NOSIGNAL) // may fail already
	if n, err := unix.Read(fd, make([]byte, 16)); n > 0 || errors.Is(err, unix.EAGAIN) {
		t.Fatalf("read %d, %v: another user was served", n, err)
	}
}

// dialAs connects on a thread that has become the user and ends afterwards.
func dialAs(path string, uid int) (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		// The raw call changes this thread alone.
		if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			err = e
			return
		}
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}()
	<-done
	return fd, err
}

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// waitFor waits until the condition holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
