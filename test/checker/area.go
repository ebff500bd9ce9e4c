// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// kind is what memory an area is.
type kind int

const (
	private    kind = iota // anonymous
	shared                 // anonymous, as several processes would share it
	inFile                 // a file of the tree, shared
	inUnlinked             // a file without a name, shared
	ofFile                 // a file of the tree, of which it has copies of its own
)

// area is a mapping, and what must be in it.
type area struct {
	kind  kind
	mem   []byte
	seeds []uint64 // of each page's contents; 0: all zero
	file  string   // its name, "" where there is none
	want  []byte   // scratch
}

func newArea(k kind, pages int, file string) (*area, error) {
	a := &area{kind: k, seeds: make([]uint64, pages), want: make([]byte, pageSize)}
	const rw = unix.PROT_READ | unix.PROT_WRITE
	var err error
	switch k {
	case private:
		a.mem, err = unix.Mmap(-1, 0, pages*pageSize, rw, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	case shared:
		a.mem, err = unix.Mmap(-1, 0, pages*pageSize, rw, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	default:
		var f *os.File
		if f, err = os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return nil, err
		}
		defer f.Close() // the mapping keeps it
		if err = f.Truncate(int64(pages) * pageSize); err != nil {
			return nil, err
		}
		flags := unix.MAP_SHARED
		if k == ofFile {
			flags = unix.MAP_PRIVATE
		}
		a.mem, err = unix.Mmap(int(f.Fd()), 0, pages*pageSize, rw, flags)
		if a.file = file; k == inUnlinked {
			a.file, err = "", errors.Join(err, os.Remove(file))
		}
	}
	return a, err
}

// change makes a random one.
func (a *area) change(rng *rand.Rand) error {
	i := rng.IntN(len(a.seeds))
	page := a.mem[i*pageSize:][:pageSize]
	switch op := rng.IntN(64); {
	case op < 36: // a new page
		a.seeds[i] = rng.Uint64() | 1
		fill(page, a.seeds[i])
	case op < 52: // a byte of it
		if a.seeds[i] == 0 {
			a.seeds[i] = rng.Uint64() | 1
			fill(page, a.seeds[i])
			break
		}
		before := a.seeds[i]
		a.seeds[i] ^= uint64(1+rng.IntN(pageSize-1)) << 52 // nothing but the patch
		patch(page, before)
		patch(page, a.seeds[i])
	case op < 57: // written with zeros
		a.seeds[i] = 0
		clear(page)
	case op < 60: // the contents of another one
		j := rng.IntN(len(a.seeds))
		a.seeds[i] = a.seeds[j]
		copy(page, a.mem[j*pageSize:][:pageSize])
	case op < 62:
		return a.drop(i, min(1+rng.IntN(8), len(a.seeds)-i))
	case a.kind == private:
		return a.resize(max(1, len(a.seeds)+rng.IntN(17)-8))
	}
	return nil
}

// drop gives n pages back, which are zero afterwards.
func (a *area) drop(i, n int) error {
	if a.kind != private {
		return nil // what is in a file stays
	}
	clear(a.seeds[i:][:n])
	return unix.Madvise(a.mem[i*pageSize:][:n*pageSize], unix.MADV_DONTNEED)
}

// resize grows or shrinks it, to where there is room.
func (a *area) resize(pages int) error {
	mem, err := unix.Mremap(a.mem, pages*pageSize, unix.MREMAP_MAYMOVE)
	if err != nil {
		return fmt.Errorf("mremap from %d to %d pages: %w", len(a.seeds), pages, err)
	}
	seeds := make([]uint64, pages)
	copy(seeds, a.seeds)
	a.mem, a.seeds = mem, seeds
	return nil
}

// check compares each page with what must be in it.
func (a *area) check() error {
	if len(a.mem) != len(a.seeds)*pageSize {
		return fmt.Errorf("it has %d bytes, not %d pages", len(a.mem), len(a.seeds))
	}
	for i, seed := range a.seeds {
		fill(a.want, seed)
		if got := a.mem[i*pageSize:][:pageSize]; !bytes.Equal(got, a.want) {
			return fmt.Errorf("page %d is not what it was: %x…, not %x…", i, got[:16], a.want[:16])
		}
	}
	return nil
}

// fill makes the contents that a seed stands for. The lowest bits choose how well
// they compress, and whether others have the same; the highest are a patch.
func fill(page []byte, seed uint64) {
	if seed == 0 {
		clear(page)
		return
	}
	base := seed & (1<<52 - 1)
	switch seed >> 1 & 7 {
	case 0, 1: // text
		copy(page, bytes.Repeat(fmt.Appendf(nil, "line %d of this page\n", base), pageSize/8)[:pageSize])
	case 2: // one of a few
		random(page, base>>4&15)
	case 3: // nearly empty
		clear(page)
		page[base>>4&(pageSize-1)] = byte(base>>16) | 1
	default:
		random(page, base)
	}
	patch(page, seed)
}

// patch turns the bits of one byte around, which a patch says; 0 is none.
func patch(page []byte, seed uint64) {
	if at := seed >> 52; at != 0 {
		page[at] ^= 0xff
	}
}

func random(b []byte, seed uint64) {
	rng := rand.NewPCG(seed, 2)
	for i := 0; i < len(b); i += 8 {
		v := rng.Uint64()
		for k := 0; k < 8 && i+k < len(b); k++ {
			b[i+k] = byte(v >> (8 * k))
		}
	}
}
