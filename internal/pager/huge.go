// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of what the kernel may keep in one piece, in bytes.
const hugePage = 2 << 20

// mapHuge maps a file for writing, aligned so that the kernel can keep it in huge
// pages.
func mapHuge(f *os.File, size int) ([]byte, error) {
	size = (size + pageSize - 1) &^ (pageSize - 1)
	// Room for an address that is aligned; what is not needed of it goes at once.
	room, err := unix.MmapPtr(-1, 0, nil, uintptr(size+hugePage), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	before := -uintptr(room) % hugePage
	at := unsafe.Add(room, before)
	if before > 0 {
		_ = unix.MunmapPtr(room, before) // addresses only
	}
	_ = unix.MunmapPtr(unsafe.Add(at, size), hugePage-before)
	if _, err := unix.MmapPtr(int(f.Fd()), 0, at, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		_ = unix.MunmapPtr(at, uintptr(size))
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return unsafe.Slice((*byte)(at), size), nil
}

// unmapHuge ends a mapping of mapHuge, once: whatever has come to be at its addresses
// since would go too.
func unmapHuge(mem []byte) {
	if len(mem) > 0 {
		_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem))) // it is one
	}
}

// makePresent brings memory of mapHuge, to which nobody writes yet, into memory, on
// all CPUs: in huge pages, which takes a fifth of the time or less, and pages of the
// usual size where the kernel has none at hand. It does what it can.
func makePresent(mem []byte) {
	var scarce atomic.Bool
	onAllCPUs(slices.Chunk(mem, hugePage), func(part []byte) {
		if len(part) == hugePage && !scarce.Load() && !present(part) {
			took, err := makeHuge(part)
			scarce.CompareAndSwap(false, err != nil || took > dearPage)
			if err == nil {
				return
			}
		}
		_ = unix.Madvise(part, unix.MADV_POPULATE_WRITE) // an optimisation
	})
}

// present tells whether memory of a huge page's size is there already, as far as its
// first and last page say.
func present(mem []byte) bool {
	var in [hugePage / pageSize]byte
	return incore(mem, in[:]) == nil && in[0] != 0 && in[len(in)-1] != 0
}

// incore tells of each page of mem whether it is in memory: 1, or 0 (mincore(2)).
func incore(mem, in []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(mem))), uintptr(len(mem)), uintptr(unsafe.Pointer(unsafe.SliceData(in)))); errno != 0 {
		return fmt.Errorf("mincore: %w", errno)
	}
	return nil
}

// makeHuge brings memory into memory as a huge page, and tells what CPU time it took.
func makeHuge(mem []byte) (took time.Duration, err error) {
	runtime.LockOSThread() // whose time it is
	defer runtime.UnlockOSThread()
	before := threadTime()
	mem[0] = 0 // the kernel makes no huge page of nothing
	if err := unix.Madvise(mem, unix.MADV_COLLAPSE); err != nil {
		return 0, fmt.Errorf("madvise: %w", err)
	}
	return threadTime() - before, nil
}

// threadTime is the CPU time of this thread.
func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // never fails (clock_gettime(2))
	return time.Duration(t.Nano())
}

// dearPage is how long a huge page takes that the kernel has to make room for, or a
// hypervisor to find memory for: the same in small pages takes no longer.
const dearPage = time.Millisecond
