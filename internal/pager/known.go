// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// knownFile is a memory file of the engine's that was mapped before the freeze.
type knownFile struct {
	mem      []byte
	dev, ino uint64
}

// Know maps one of the engine's memory files and brings what it holds into this
// process' page tables, so that the copying in the pause causes no page faults:
// they are a third of its time. It gives the mapping, which is the arena's.
// Call it before the engine writes.
func (a *Arena) Know(f *os.File) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("pager: memory file: %w", err)
	}
	if st.Size == 0 {
		return nil, nil
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("pager: mapping a memory file: %w", err)
	}
	a.known = append(a.known, knownFile{mem: mem, dev: st.Dev, ino: st.Ino})
	populate(int(f.Fd()), mem)
	return mem, nil
}

// populateBytes is how much one worker maps at a time.
const populateBytes = 16 << 20

// populate maps the pages that a file has, on all CPUs. It does what it can.
func populate(fd int, mem []byte) {
	parts := make(chan []byte)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for part := range parts {
				faultIn(part)
			}
		})
	}
	for off := int64(0); off < int64(len(mem)); {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err != nil {
			break // no more
		}
		end, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			break
		}
		end = min(end, int64(len(mem)))
		for ; data < end; data += populateBytes {
			parts <- mem[data:min(data+populateBytes, end)]
		}
		off = end
	}
	close(parts)
	wg.Wait()
}

// faultIn maps pages that are in the page cache. A fault maps those around it, too, as
// far as they are aligned like faultAround: touching one of them takes 60 % of the
// time that MADV_POPULATE_READ takes, which goes through them one by one.
func faultIn(mem []byte) {
	var touched byte
	defer func() { runtime.KeepAlive(touched) }()
	start := int(uintptr(unsafe.Pointer(unsafe.SliceData(mem))) % faultAround)
	for at := 0; at < len(mem); at += faultAround - (start+at)%faultAround {
		touched |= mem[at]
	}
}

// faultAround is the kernel's fault_around_bytes, unless somebody changed it.
const faultAround = 64 << 10

// mappingOf gives the mapping of a file that is known, or nil.
func (a *Arena) mappingOf(fd int) []byte {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return nil
	}
	for _, k := range a.known {
		if k.dev == st.Dev && k.ino == st.Ino {
			return k.mem
		}
	}
	return nil
}
