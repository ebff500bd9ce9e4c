// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
	"gvisor.dev/gvisor/pkg/sentry/state/stateipc"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
)

// dial is the engine's side of the page protocol, as the engine itself has it.
func dial(t *testing.T, sock *os.File, err error) *stateipc.AsyncFileClient {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(sock.Fd()))
	if err == nil {
		err = sock.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := unet.NewSocket(fd)
	if err != nil {
		t.Fatal(err)
	}
	c, err := stateipc.NewAsyncFileClient(urpc.NewClient(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.DecRef)
	return c
}

// opened opens the files of a capture, in the engine's order; state writes from
// the source.
func opened(t *testing.T, a *Arena) (c *stateipc.AsyncFileClient, state, pages stateio.AsyncWriter, s testSource) {
	t.Helper()
	sock, err := a.Serve()
	c = dial(t, sock, err)
	open := func(name string) stateio.AsyncWriter {
		w, err := c.OpenWrite(name)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	state = open(checkpointfiles.StateFileName)
	s = register(t, state, 4*pageSize)
	meta := open(checkpointfiles.PagesMetadataFileName)
	register(t, meta, pageSize)
	pages = open(checkpointfiles.PagesFileName)
	finish(t, meta)
	return c, state, pages, s
}

// memory makes a memory file of the size, and its mapping.
func memory(t *testing.T, size int) (*os.File, []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return f, m
}

func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func random(rng *rand.Rand, b []byte) {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rng.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
}

func span(start, length uint64) memmap.FileRange {
	return memmap.FileRange{Start: start, End: start + length}
}

// waiter is what readers and writers have in common.
type waiter interface {
	Wait(cs []stateio.Completion, n int) ([]stateio.Completion, error)
}

// await gives at least n completions, in the order in which they came.
func await(t *testing.T, w waiter, n int) []stateio.Completion {
	t.Helper()
	cs, err := w.Wait(nil, n)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	return cs
}
