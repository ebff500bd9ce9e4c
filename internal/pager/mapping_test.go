// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bufio"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a memory file holds is mapped, wherever it lies, and
// nothing that it does not hold comes to be in it.
func TestPopulateMapsWhatThereIsAndMakesNothing(t *testing.T) {
	t.Parallel()
	const size = 3*populateBytes + faultAround
	f, mem := memory(t, size)
	pages := 0
	for _, at := range []int{1, 17, 31, 32, 33, size/pageSize - 1} { // alone, and around the bounds of a fault
		mem[at*pageSize] = 1
		pages++
	}
	for at := populateBytes - 5*pageSize; at < 2*populateBytes+7*pageSize; at += pageSize { // over the bounds of workers
		mem[at] = 1
		pages++
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	before := blocks()
	m := mapFile(t, f)
	known := m.bytes()
	if len(known) != size {
		t.Fatalf("%d bytes are mapped", len(known))
	}
	if now := blocks(); now != before {
		t.Errorf("the file has %d blocks after it was looked at, %d before", now, before)
	}
	if got := mapped(t, known); got != pages*pageSize {
		t.Errorf("%d KB are mapped of %d KB", got>>10, pages*pageSize>>10)
	}
}

// A mapping follows its file, whose end is behind the first one's.
func TestMappingFollowsItsFile(t *testing.T) {
	t.Parallel()
	f, mem := memory(t, 4*pageSize)
	if err := f.Truncate(pageSize); err != nil {
		t.Fatal(err)
	}
	mem[0] = 1
	m := mapFile(t, f)
	if got := m.bytes(); len(got) != pageSize || got[0] != 1 {
		t.Fatalf("%d bytes", len(got))
	}
	if err := f.Truncate(4 * pageSize); err != nil {
		t.Fatal(err)
	}
	mem[0], mem[3*pageSize] = 2, 3
	m.Populate()
	if got := m.bytes(); len(got) != 4*pageSize || got[0] != 2 || got[3*pageSize] != 3 || mapped(t, got) != 2*pageSize {
		t.Errorf("%d bytes", len(got))
	}
}

// What a file holds is told to the page, also of what was written or given back since
// it was mapped.
func TestExtents(t *testing.T) {
	t.Parallel()
	const pages = 3000
	rng := rand.New(rand.NewPCG(1, 2))
	f, mem := memory(t, pages*pageSize)
	has := make([]bool, pages)
	m := mapFile(t, f)
	for round := range 40 {
		for range 10 {
			from, write := rng.IntN(pages), rng.IntN(3) > 0
			to := min(pages, from+1+rng.IntN(1<<rng.IntN(12)))
			for i := from; i < to; i++ {
				if has[i] = write; write {
					mem[i*pageSize] = 1
				}
			}
			if !write {
				if err := unix.Madvise(mem[from*pageSize:to*pageSize], unix.MADV_REMOVE); err != nil {
					t.Fatal(err)
				}
			}
		}
		var want []Extent
		for i := range has {
			switch n := len(want); {
			case !has[i]:
			case n > 0 && want[n-1].End == int64(i*pageSize):
				want[n-1].End += pageSize
			default:
				want = append(want, Extent{int64(i * pageSize), int64((i + 1) * pageSize)})
			}
		}
		got := m.Extents()
		if round%2 == 0 {
			got = m.Populate()
		}
		if !slices.Equal(got, want) {
			t.Fatalf("round %d: it holds\n%v, not\n%v", round, got, want)
		}
	}
}

// mapFile maps a copy of a file's descriptor, populated.
func mapFile(t *testing.T, f *os.File) *Mapping {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Map(os.NewFile(uintptr(fd), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	m.Populate()
	return m
}

// mapped is how many bytes of a mapping are in this process' page tables.
func mapped(t *testing.T, mem []byte) int {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begin := fmt.Sprintf("%x-", uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	for sc, here := bufio.NewScanner(f), false; sc.Scan(); {
		here = here || strings.HasPrefix(sc.Text(), begin)
		if w := strings.Fields(sc.Text()); here && w[0] == "Rss:" {
			kb, err := strconv.Atoi(w[1])
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("the mapping is not there")
	return 0
}

// What is touched later comes to be there, unless it lies behind the file as it was
// seen, or it is stopped before.
func TestTouchLater(t *testing.T) {
	t.Parallel()
	const size = 4 * laterBytes
	f, _ := memory(t, size)
	m := mapFile(t, f)
	touched := func(stop bool, from, to int64) int {
		asked, begin, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
		cancel := m.TouchLater(func() iter.Seq2[int64, int64] {
			close(asked)
			<-begin
			return func(yield func(from, to int64) bool) {
				defer close(end)
				yield(from, to)
			}
		})
		<-asked
		if stop {
			cancel()
		}
		close(begin)
		<-end
		return mapped(t, m.bytes())
	}
	const want = 2*laterBytes - pageSize
	if got := touched(false, pageSize, 2*laterBytes); got != want {
		t.Errorf("%d bytes are there, want %d", got, want)
	}
	if got := touched(false, 0, 2*size); got != want {
		t.Errorf("%d bytes are there, want %d", got, want)
	}
	if got := touched(true, 2*laterBytes, size); got != want {
		t.Errorf("%d bytes are there after it was stopped", got)
	}
}
