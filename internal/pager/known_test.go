// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a memory file holds is mapped when it is known, wherever it lies, and
// nothing that it does not hold comes to be in it.
func TestKnowMapsWhatThereIsAndMakesNothing(t *testing.T) {
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
	a, _ := newArena(t, pageSize, pageSize, pageSize)
	known, err := a.Know(f)
	if err != nil || len(known) != size {
		t.Fatalf("Know: %d bytes, %v", len(known), err)
	}
	if now := blocks(); now != before {
		t.Errorf("the file has %d blocks after it was looked at, %d before", now, before)
	}
	if got := mapped(t, known); got != pages*pageSize {
		t.Errorf("%d KB are mapped of %d KB", got>>10, pages*pageSize>>10)
	}
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
