// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mappingRoom is how much a file may grow behind what it was when it was mapped, in
// bytes: of the address space, which costs nothing.
const mappingRoom = 64 << 30

// Mapping is one of the engine's memory files, mapped before the freeze: page
// faults would be a third of the time of the copying in the pause. It serves one
// capture after the other, and what is mapped stays so: to map a gigabyte takes as
// long as to copy it, or longer where a hypervisor has its own idea of page tables.
type Mapping struct {
	file     *os.File
	mem      []byte
	size     int // of the file, as it was last seen
	dev, ino uint64
}

// Map maps a file, which is the mapping's from then on, also after an error.
func Map(f *os.File) (_ *Mapping, err error) {
	m := &Mapping{file: f}
	defer func() {
		if err != nil {
			_ = f.Close() // only read
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("pager: memory file: %w", err)
	}
	m.dev, m.ino = st.Dev, st.Ino
	if m.mem, err = unix.Mmap(int(f.Fd()), 0, int(st.Size)+mappingRoom, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("pager: mapping a memory file: %w", err)
	}
	return m, nil
}

// Extent is a part of a file, from an offset to another, in bytes.
type Extent struct{ Start, End int64 }

// Populate brings what the file holds into this process' page tables, and tells what
// that is, in order. It does what it can.
func (m *Mapping) Populate() (has []Extent) {
	var st unix.Stat_t
	if unix.Fstat(int(m.file.Fd()), &st) != nil {
		return nil
	}
	m.size = int(min(st.Size, int64(len(m.mem))))
	mem := m.bytes()
	onAllCPUs(func(yield func([]byte) bool) {
		for e := range m.extents(int64(m.size)) {
			has = append(has, e)
			for at := e.Start; at < e.End; at += populateBytes {
				if !yield(mem[at:min(at+populateBytes, e.End)]) {
					return
				}
			}
		}
	}, faultIn)
	return has
}

// Extents are the parts of the file that it holds, in order, as far as it was last
// populated.
func (m *Mapping) Extents() []Extent { return slices.Collect(m.extents(int64(m.size))) }

// extents are the parts of the file before an offset that it holds.
func (m *Mapping) extents(size int64) iter.Seq[Extent] {
	fd := int(m.file.Fd())
	return func(yield func(Extent) bool) {
		for off := int64(0); off < size; {
			start, err := unix.Seek(fd, off, unix.SEEK_DATA)
			if err != nil || start >= size {
				return // no more
			}
			off = min(m.hole(start, size), size)
			if !yield(Extent{start, off}) {
				return
			}
		}
	}
}

// hole gives the first page behind one that the file has, before an offset, that it
// does not have. lseek(2) with SEEK_HOLE takes 25 ns for each page until there; this
// takes a fifth of that for those that are in this process' page tables, which all
// are but for the first time. Of a hole it takes longer: there it looks at little.
func (m *Mapping) hole(start, size int64) int64 {
	const least, most = 16, 256 // pages
	var in [most]byte
	at := start + pageSize
	for n := int64(least); at < size; n = min(2*n, most) {
		n = min(n, (size-at+pageSize-1)/pageSize)
		if incore(m.mem[at:at+n*pageSize], in[:n]) != nil {
			return at
		}
		if i := bytes.IndexByte(in[:n], 0); i >= 0 {
			return at + int64(i)*pageSize
		}
		at += n * pageSize
	}
	return at
}

// bytes are the file as it was when it was last populated.
func (m *Mapping) bytes() []byte { return m.mem[:m.size] }

// Close ends the mapping. No arena that knows it may be written to any more.
func (m *Mapping) Close() error {
	return errors.Join(unix.Munmap(m.mem), m.file.Close())
}

// Know has the arena copy from a mapping, which was populated and is not closed or
// populated again before the engine has closed what it writes. Call it before the
// engine writes.
func (a *Arena) Know(m *Mapping) {
	a.known = append(a.known, knownFile{mem: m.bytes(), dev: m.dev, ino: m.ino})
}

// knownFile is a memory file of the engine's that was mapped before the freeze.
type knownFile struct {
	mem      []byte
	dev, ino uint64
}

// Touch brings parts of the file, each from an offset to another, into this
// process' page tables, also where the file has no pages, which it has then. It does
// what it can.
func (m *Mapping) Touch(parts iter.Seq2[int64, int64]) {
	onAllCPUs(func(yield func([]byte) bool) {
		for from, to := range parts {
			if to <= int64(m.size) && !yield(m.mem[from:to]) {
				return
			}
		}
	}, touch)
}

// TouchLater is Touch at leisure, beside whatever the mapping is used for next: one
// thread does it, that all others go before, until stop is called. parts is called
// by it.
func (m *Mapping) TouchLater(parts func() iter.Seq2[int64, int64]) (stop func()) {
	var stopped atomic.Bool
	mem := m.bytes()
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its priority
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, lowest)
		for from, to := range parts() {
			for ; from < to && to <= int64(len(mem)); from += laterBytes {
				if stopped.Load() {
					return
				}
				touch(mem[from:min(from+laterBytes, to)])
			}
		}
	}()
	return func() { stopped.Store(true) }
}

const (
	lowest = 19 // of priorities (setpriority(2))
	// laterBytes is how much is touched before another look whether to stop.
	laterBytes = 128 << 10
)

func touch(part []byte) { _ = unix.Madvise(part, unix.MADV_POPULATE_READ) }

// populateBytes is how much one worker maps at a time.
const populateBytes = 16 << 20

// onAllCPUs does something with parts of memory, side by side.
func onAllCPUs(parts iter.Seq[[]byte], do func([]byte)) {
	todo := make(chan []byte)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for part := range todo {
				do(part)
			}
		})
	}
	for part := range parts {
		todo <- part
	}
	close(todo)
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
