// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
	"gvisor.dev/gvisor/pkg/sentry/state/stateipc"
)

// An engine that does not do what it was told is done is not listened to any
// more.
func TestOpeningRefuses(t *testing.T) {
	t.Parallel()
	large := func(c *stateipc.AsyncFileClient) error {
		w, err := c.OpenWrite(checkpointfiles.StateFileName)
		if err != nil {
			return err
		}
		f, mem := memory(t, maxGather+pageSize)
		_, err = w.RegisterSourceFD(int32(f.Fd()), uint64(len(mem)), nil)
		return err
	}
	for _, tt := range []struct {
		what string
		good int // calls
		open func(c *stateipc.AsyncFileClient) error
	}{
		{"a foreign name", 0, func(c *stateipc.AsyncFileClient) error { _, err := c.OpenWrite("../etc/passwd"); return err }},
		{"another order", 0, func(c *stateipc.AsyncFileClient) error {
			_, err := c.OpenWrite(checkpointfiles.PagesFileName)
			return err
		}},
		{"reading", 0, func(c *stateipc.AsyncFileClient) error {
			_, err := c.OpenRead(checkpointfiles.StateFileName)
			return err
		}},
		{"too large a buffer", 1, large},
	} {
		a, _ := newArena(t, pageSize, pageSize, pageSize)
		server, sock, err := a.offer()
		c := dial(t, sock, err)
		if err := tt.open(c); err != nil {
			t.Errorf("%s: %v, and was answered before", tt.what, err)
		}
		for range tt.good {
			if err := server.next(); err != nil {
				t.Errorf("before %s: %v", tt.what, err)
			}
		}
		if err := server.next(); err == nil {
			t.Errorf("%s is accepted", tt.what)
		}
		server.end()
	}
}

// When the opening is over, the files are those that there are.
func TestNoFileIsOpenedLater(t *testing.T) {
	t.Parallel()
	a, _ := newArena(t, pageSize, pageSize, pageSize)
	c, state, pages, _ := opened(t, a)
	finish(t, state)
	finish(t, pages)
	if _, err := c.OpenWrite(checkpointfiles.PagesFileName); err == nil {
		t.Error("a file was opened a second time")
	}
}

// Our death at any moment of the opening is not felt before it is over: each call
// has its answer. Then it is, at once.
func TestOpeningSurvivesItsServer(t *testing.T) {
	t.Parallel()
	const calls = 5
	for dead := range calls + 1 {
		a, _ := newArena(t, pageSize, pageSize, pageSize)
		server, sock, err := a.offer()
		c := dial(t, sock, err)
		at := 0
		step := func(call func() error) {
			if at == dead {
				// What the kernel does with a process' descriptors, and its memory.
				if fd, err := server.sock.Release(); err != nil || unix.Close(fd) != nil {
					t.Fatal(err)
				}
			}
			if at++; at > calls {
				return
			}
			if err := call(); err != nil {
				t.Fatalf("dead before call %d: call %d: %v", dead+1, at, err)
			}
		}
		var files []stateio.AsyncWriter
		open := func(name string) {
			step(func() error {
				w, err := c.OpenWrite(name)
				files = append(files, w)
				return err
			})
		}
		buffer := func() {
			step(func() error {
				f, mem := memory(t, pageSize)
				_, err := files[len(files)-1].RegisterSourceFD(int32(f.Fd()), uint64(len(mem)), nil)
				return err
			})
		}
		open(checkpointfiles.StateFileName)
		buffer()
		open(checkpointfiles.PagesMetadataFileName)
		buffer()
		open(checkpointfiles.PagesFileName)
		step(nil)
		for _, w := range files {
			f, mem := memory(t, pageSize)
			if _, err := w.RegisterSourceFD(int32(f.Fd()), uint64(len(mem)), nil); err == nil {
				t.Errorf("dead before call %d: answered after the opening", dead+1)
			}
			if err := w.Close(); err == nil {
				t.Errorf("dead before call %d: closed as if nothing was wrong", dead+1)
			}
		}
		server.end()
	}
}
