// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// Pack is an open pack. It may be used by many goroutines; what is called after
// or during Close misses or fails.
type Pack struct {
	cache *Cache
	pages *os.File // holds the lock
	sums  *os.File
	slots int
	mask  uint64
}

// batch bounds the pages whose sums are handled at once.
const batch = 512

// sumBufs holds room for the sums of a batch.
var sumBufs = sync.Pool{New: func() any { return new([batch * sumSize]byte) }}

// Read fills dst, whole pages, from the slots that begin at slot, and tells
// whether all of them were there and undamaged. If not, dst holds nothing of
// use.
func (p *Pack) Read(dst []byte, slot int) bool {
	n := len(dst) / PageSize
	if !p.holds(len(dst), slot) || !p.read(dst, slot) {
		p.cache.misses.Add(int64(n))
		return false
	}
	p.cache.hits.Add(int64(n))
	return true
}

// read is Read without the counting of hits and misses.
func (p *Pack) read(dst []byte, slot int) bool {
	buf := sumBufs.Get().(*[batch * sumSize]byte)
	defer sumBufs.Put(buf)
	for ; len(dst) > 0; slot += batch {
		part := dst[:min(len(dst), batch*PageSize)]
		dst = dst[len(part):]
		sums := buf[:len(part)/PageSize*sumSize]
		if !p.present(sums, slot) {
			return false
		}
		if _, err := p.pages.ReadAt(part, int64(slot)*PageSize); err != nil {
			return false // too short for a page that has a sum, or a bad disk
		}
		for i := 0; len(part) > 0; i++ {
			if p.sum(part[:PageSize], slot+i) != binary.LittleEndian.Uint64(sums[i*sumSize:]) {
				p.forget(slot + i)
				return false
			}
			part = part[PageSize:]
		}
	}
	return true
}

// Has tells whether n slots beginning at slot have been written. It looks at
// the sums alone: Read can still find damage, after which Has says no.
func (p *Pack) Has(slot, n int) bool {
	if n < 1 || n > p.slots || !p.holds(n*PageSize, slot) {
		return false
	}
	buf := sumBufs.Get().(*[batch * sumSize]byte)
	defer sumBufs.Put(buf)
	for ; n > 0; slot, n = slot+batch, n-batch {
		if !p.present(buf[:min(n, batch)*sumSize], slot) {
			return false
		}
	}
	return true
}

// present reads sums and tells whether all are there.
func (p *Pack) present(sums []byte, slot int) bool {
	if _, err := p.sums.ReadAt(sums, int64(slot)*sumSize); err != nil {
		return false
	}
	for ; len(sums) > 0; sums = sums[sumSize:] {
		if binary.LittleEndian.Uint64(sums) == 0 {
			return false
		}
	}
	return true
}

// forget makes a damaged slot absent, so that it is filled again.
func (p *Pack) forget(slot int) {
	p.cache.damaged.Add(1)
	var absent [sumSize]byte
	_, _ = p.sums.WriteAt(absent[:], int64(slot)*sumSize) // if this fails it stays damaged: a miss as well
}

// Write stores whole pages in the slots that begin at slot. It is best effort:
// where the disk is full nothing is cached, and that is no error.
func (p *Pack) Write(src []byte, slot int) error {
	if !p.holds(len(src), slot) {
		return fmt.Errorf("cache: write %d bytes at slot %d of %d", len(src), slot, p.slots)
	}
	err := p.write(src, slot)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	p.cache.wrote(len(src))
	return nil
}

func (p *Pack) write(src []byte, slot int) error {
	buf := sumBufs.Get().(*[batch * sumSize]byte)
	defer sumBufs.Put(buf)
	for ; len(src) > 0; slot += batch {
		part := src[:min(len(src), batch*PageSize)]
		src = src[len(part):]
		if _, err := p.pages.WriteAt(part, int64(slot)*PageSize); err != nil {
			return err
		}
		sums := buf[:len(part)/PageSize*sumSize]
		for i := 0; len(part) > 0; i++ {
			binary.LittleEndian.PutUint64(sums[i*sumSize:], p.sum(part[:PageSize], slot+i))
			part = part[PageSize:]
		}
		if _, err := p.sums.WriteAt(sums, int64(slot)*sumSize); err != nil {
			return err
		}
	}
	return nil
}

// holds tells whether the bytes are whole pages of slots that the pack has.
func (p *Pack) holds(bytes, slot int) bool {
	return bytes > 0 && bytes%PageSize == 0 && slot >= 0 && slot < p.slots && bytes/PageSize <= p.slots-slot
}

// Close ends the use of the pack by this Pack.
func (p *Pack) Close() error {
	p.touch()
	if err := errors.Join(p.sums.Close(), p.pages.Close()); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return nil
}

// touch notes that the pack was used now; see Trim. That it failed costs no
// more than a bad choice there.
func (p *Pack) touch() {
	now := time.Now()
	_ = os.Chtimes(p.sums.Name(), now, now)
}

// nameMask is what the sums of a pack's pages are mixed with.
func nameMask(name string) uint64 { return xxh3.HashString(name) }

// sum is what is stored for a page. Mixing in the pack and the slot finds a
// page that is whole but in the wrong place.
func (p *Pack) sum(page []byte, slot int) uint64 {
	// An odd factor keeps the masks of all slots apart.
	s := xxh3.Hash(page) ^ (p.mask + uint64(slot)*0x9e3779b97f4a7c15)
	if s == 0 {
		return 1 // zero is a hole
	}
	return s
}
