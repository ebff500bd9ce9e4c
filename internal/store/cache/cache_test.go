// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const name = "0123abcd-ef.0"

// content is what every writer of these tests puts at a slot of a pack.
func content(name string, slot, n int) []byte {
	var seed [32]byte
	copy(seed[:], name)
	out := make([]byte, n*PageSize)
	for i := range n {
		binary.LittleEndian.PutUint64(seed[24:], uint64(slot+i))
		_, _ = rand.NewChaCha8(seed).Read(out[i*PageSize : (i+1)*PageSize])
	}
	return out
}

func open(t testing.TB, dir string, limit int64) *Cache {
	t.Helper()
	c, err := Open(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pack(t testing.TB, c *Cache, name string, slots int) *Pack {
	t.Helper()
	p, err := c.Pack(name, slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func write(t testing.TB, p *Pack, name string, slot, n int) {
	t.Helper()
	if err := p.Write(content(name, slot, n), slot); err != nil {
		t.Fatal(err)
	}
}

// checkRead reads n pages and compares: found as wanted, and never other bytes.
func checkRead(t testing.TB, p *Pack, name string, slot, n int, want bool) {
	t.Helper()
	dst := make([]byte, n*PageSize)
	ok := p.Read(dst, slot)
	if ok != want {
		t.Errorf("%s: read %d pages at %d: %v, want %v", name, n, slot, ok, want)
	}
	if ok && !bytes.Equal(dst, content(name, slot, n)) {
		t.Errorf("%s: other bytes at %d", name, slot)
	}
}

func stats(t testing.TB, c *Cache) Stats {
	t.Helper()
	s, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func trim(t testing.TB, c *Cache) int64 {
	t.Helper()
	freed, err := c.Trim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return freed
}

// What was written is read, in any cut, and nothing else is; also by a cache
// that is opened later.
func TestReadsWhatWasWritten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "cache")
	c := open(t, dir, 1<<30)
	p := pack(t, c, name, 2000)
	write(t, p, name, 0, 1)
	write(t, p, name, 100, 1300) // more than a batch
	write(t, p, name, 1999, 1)
	for _, c := range []*Cache{c, open(t, dir, 0)} {
		p := pack(t, c, name, 2000)
		checkRead(t, p, name, 0, 1, true)
		checkRead(t, p, name, 1999, 1, true)
		checkRead(t, p, name, 100, 1300, true)
		checkRead(t, p, name, 611, 2, true)
		checkRead(t, p, name, 0, 2, false)
		checkRead(t, p, name, 99, 2, false)
		checkRead(t, p, name, 1399, 2, false)
		checkRead(t, p, name, 50, 1, false)
		if !p.Has(100, 1300) || !p.Has(1999, 1) || p.Has(99, 1300) || p.Has(101, 1300) || p.Has(1, 1) {
			t.Error("Has and Read disagree")
		}
		s := stats(t, c)
		if s.Packs != 1 || s.Bytes < 1302*PageSize || s.Bytes > 1400*PageSize {
			t.Errorf("stats: %+v", s)
		}
		if s.Hits != 1304 || s.Misses != 7 || s.Damaged != 0 {
			t.Errorf("counted: %+v", s)
		}
	}
}

func TestOutOfBounds(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir(), 1<<30)
	p := pack(t, c, name, 4)
	write(t, p, name, 0, 4)
	for _, at := range []struct{ bytes, slot int }{{0, 0}, {PageSize, 4}, {PageSize, -1}, {2 * PageSize, 3}, {PageSize - 1, 0}, {PageSize, 1 << 62}, {5 * PageSize, 0}} {
		if p.Read(make([]byte, at.bytes), at.slot) {
			t.Errorf("read %d bytes at %d", at.bytes, at.slot)
		}
		if p.Write(make([]byte, at.bytes), at.slot) == nil {
			t.Errorf("wrote %d bytes at %d", at.bytes, at.slot)
		}
	}
	if p.Has(0, 5) || p.Has(-1, 1) || p.Has(0, 0) || p.Has(0, -1) || p.Has(1, 1<<62) {
		t.Error("has what it cannot have")
	}
	for _, slots := range []int{0, -1, MaxSlots + 1} {
		if _, err := c.Pack(name, slots); err == nil {
			t.Errorf("a pack of %d slots", slots)
		}
	}
	if _, err := Open(t.TempDir(), -1); err == nil {
		t.Error("a negative limit")
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir(), 0)
	for _, bad := range []string{"", ".", "..", "-", "../a", "a/b", "a.sums", "A", "a b", "a\x00", ".a", "-a", "x", strings.Repeat("a", maxName+1)} {
		if _, err := c.Pack(bad, 1); err == nil {
			t.Errorf("accepted the name %q", bad)
		}
		if _, err := c.Drop(bad); err == nil {
			t.Errorf("dropped the name %q", bad)
		}
	}
	for _, good := range []string{"a", "0-1.2", "a..b", strings.Repeat("a", maxName)} {
		write(t, pack(t, c, good, 1), good, 0, 1)
	}
	if s := stats(t, c); s.Packs != 4 {
		t.Errorf("%+v", s)
	}
}

// A page that changes, moves or comes from another pack is a miss, once: then
// the slot counts as empty and can be filled again.
func TestDamageIsAMiss(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir, 1<<30)
	p := pack(t, c, name, 8)
	write(t, p, name, 0, 8)
	poke(t, filepath.Join(dir, name), 2*PageSize+77, 1)
	poke(t, filepath.Join(dir, name+sumsSuffix), 5*sumSize, 0x80)
	for _, slot := range []int{2, 5} {
		if !p.Has(slot, 1) {
			t.Error("damage that nobody read is known")
		}
		checkRead(t, p, name, slot, 1, false)
		if p.Has(slot, 1) {
			t.Error("a damaged slot is not forgotten")
		}
		write(t, p, name, slot, 1)
	}
	checkRead(t, p, name, 0, 8, true)
	if s := stats(t, c); s.Damaged != 2 || s.Misses != 2 || s.Hits != 8 {
		t.Errorf("%+v", s)
	}

	// Page and sum agree, in the wrong slot and in the wrong pack.
	other := pack(t, c, "0", 8)
	for _, at := range []struct {
		name       string
		p          *Pack
		slot, unit int
	}{{name, p, 1, 1}, {"0", other, 0, 1}} {
		copyAt(t, filepath.Join(dir, name), filepath.Join(dir, at.name), 0, at.slot*PageSize, PageSize)
		copyAt(t, filepath.Join(dir, name+sumsSuffix), filepath.Join(dir, at.name+sumsSuffix), 0, at.slot*sumSize, sumSize)
		checkRead(t, at.p, at.name, at.slot, 1, false)
	}
}

func poke(t testing.TB, path string, at int64, xor byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= xor
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

func copyAt(t testing.TB, from, to string, at, put, n int) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(raw[at:at+n], int64(put)); err != nil {
		t.Fatal(err)
	}
}

// What a power cut can leave of unsynced files is only ever a miss: either file
// empty, missing, shorter, or with zeros where bytes were.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	const slots = 64
	cuts := map[string]func(t *testing.T, pages, sums string){
		"pages empty":   func(t *testing.T, pages, _ string) { truncate(t, pages, 0) },
		"sums empty":    func(t *testing.T, _, sums string) { truncate(t, sums, 0) },
		"pages short":   func(t *testing.T, pages, _ string) { truncate(t, pages, 5*PageSize+9) },
		"sums short":    func(t *testing.T, _, sums string) { truncate(t, sums, 5*sumSize+3) },
		"pages zero":    func(t *testing.T, pages, _ string) { truncate(t, pages, 0); truncate(t, pages, slots*PageSize) },
		"sums zero":     func(t *testing.T, _, sums string) { truncate(t, sums, 0); truncate(t, sums, slots*sumSize) },
		"sums missing":  func(t *testing.T, _, sums string) { os.Remove(sums) },
		"pages missing": func(t *testing.T, pages, _ string) { os.Remove(pages) },
	}
	for what, cut := range cuts {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c := open(t, dir, 1<<30)
			p := pack(t, c, name, slots)
			write(t, p, name, 0, slots)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			cut(t, filepath.Join(dir, name), filepath.Join(dir, name+sumsSuffix))
			p = pack(t, c, name, slots)
			for slot := range slots {
				if dst := make([]byte, PageSize); p.Read(dst, slot) && !bytes.Equal(dst, content(name, slot, 1)) {
					t.Errorf("slot %d has other bytes", slot)
				}
			}
			checkRead(t, p, name, 6, 1, false)
			write(t, p, name, 0, slots)
			checkRead(t, p, name, 0, slots, true)
		})
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// A full disk costs misses and no error.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("mounting a small disk (run the tests as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := open(t, dir, 1<<30)
	p := pack(t, c, name, 1000)
	for slot := range 1000 {
		write(t, p, name, slot, 1)
	}
	cached := 0
	for slot := range 1000 {
		if p.Has(slot, 1) {
			cached++
			checkRead(t, p, name, slot, 1, true)
		}
	}
	if cached == 0 || cached > 64 {
		t.Errorf("%d pages fit into 256 KiB", cached)
	}
}

// The least recently used goes first, and what is in use stays.
func TestTrim(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const pages = 16
	c, filler := open(t, dir, 3*(pages+2)*PageSize), open(t, dir, 1<<30)
	for i := range 6 {
		name := fmt.Sprint(i)
		p := pack(t, filler, name, pages)
		write(t, p, name, 0, pages)
		if i == 1 {
			continue // stays in use
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i-10) * time.Minute)
		if err := os.Chtimes(filepath.Join(dir, name+sumsSuffix), at, at); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "1"+sumsSuffix), at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before := stats(t, c)
	if freed := trim(t, c); freed <= 0 || stats(t, c).Bytes != before.Bytes-freed || before.Bytes-freed > c.limit {
		t.Errorf("freed %d of %d with limit %d", freed, before.Bytes, c.limit)
	}
	var left []string
	for i := range 6 {
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprint(i))); err == nil {
			left = append(left, fmt.Sprint(i))
		}
	}
	if got := strings.Join(left, " "); got != "1 4 5" {
		t.Errorf("left: %s", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "README")); err != nil {
		t.Error("a file that is not ours went", err)
	}
	if freed := trim(t, c); freed != 0 {
		t.Errorf("freed %d once more", freed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(t, dir, 0).Trim(ctx); err == nil {
		t.Error("trimmed after the context ended")
	}
}

// What a crash between the removals of an eviction left goes with the next.
func TestTrimRemovesHalves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir, 0)
	for _, file := range []string{"a", "b" + sumsSuffix} {
		if err := os.WriteFile(filepath.Join(dir, file), make([]byte, PageSize), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	trim(t, c)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// Who only ever writes keeps the cache near its limit too.
func TestWritingTrims(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	c := open(t, t.TempDir(), limit)
	for i := range 40 {
		name := fmt.Sprint(i)
		p := pack(t, c, name, 32)
		write(t, p, name, 0, 32)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s := stats(t, c); s.Bytes > limit+limit/trimShare+40*PageSize || s.Bytes < limit/2 {
		t.Errorf("%+v with limit %d", s, limit)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir(), 1<<30)
	p := pack(t, c, name, 1)
	write(t, p, name, 0, 1)
	if gone, err := c.Drop(name); gone || err != nil {
		t.Errorf("dropped a pack in use: %v, %v", gone, err)
	}
	checkRead(t, p, name, 0, 1, true)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to drop
		if gone, err := c.Drop(name); !gone || err != nil {
			t.Errorf("drop: %v, %v", gone, err)
		}
	}
	checkRead(t, pack(t, c, name, 1), name, 0, 1, false)
	if s := stats(t, c); s.Packs != 1 || s.Bytes != 0 {
		t.Errorf("%+v", s)
	}
}

func TestClosedPack(t *testing.T) {
	t.Parallel()
	p := pack(t, open(t, t.TempDir(), 1<<30), name, 1)
	write(t, p, name, 0, 1)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	checkRead(t, p, name, 0, 1, false)
	if p.Has(0, 1) || p.Write(content(name, 0, 1), 0) == nil || p.Close() == nil {
		t.Error("a closed pack works")
	}
}
