// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What is made present is there, is zero, keeps what is written to it, and is no more
// than was asked for: of memory, and of a disk, which has no huge pages.
func TestMakePresent(t *testing.T) {
	t.Parallel()
	const size, part = 5*hugePage + 3*pageSize, 3*hugePage + 5*pageSize
	memory, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Create(filepath.Join(t.TempDir(), "arena"))
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*os.File{"memory": os.NewFile(uintptr(memory), "test"), "disk": disk} {
		t.Run(name, func(t *testing.T) {
			defer f.Close()
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			mem, err := mapHuge(f, size)
			if err != nil {
				t.Fatal(err)
			}
			defer unmapHuge(mem)
			if len(mem) != size {
				t.Fatalf("%d bytes are mapped, want %d", len(mem), size)
			}
			makePresent(mem[:part])
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil {
				t.Fatal(err)
			}
			if got := st.Blocks * 512; name == "memory" && got != part {
				t.Errorf("%d bytes are present, want %d", got, part)
			}
			want := make([]byte, size)
			for i := 0; i < size; i += 1001 {
				mem[i], want[i] = byte(i), byte(i)
			}
			got := make([]byte, size)
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file does not hold what was written to the mapping (%v)", err)
			}
		})
	}
}

// Memory that is there already stays as it is.
func TestMakePresentOfWhatIsThere(t *testing.T) {
	t.Parallel()
	const size = 2 * hugePage
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	defer f.Close()
	if _, err := f.Write(make([]byte, hugePage)); err != nil { // not the second half
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := mapHuge(f, size)
	if err != nil {
		t.Fatal(err)
	}
	defer unmapHuge(mem)
	if !present(mem[:hugePage]) || present(mem[hugePage:]) {
		t.Fatalf("present: %v, %v", present(mem[:hugePage]), present(mem[hugePage:]))
	}
	makePresent(mem)
	if !present(mem[:hugePage]) || !present(mem[hugePage:]) {
		t.Error("not all is present")
	}
	if got := mapped(t, mem); got != size {
		t.Errorf("%d bytes are mapped, want %d", got, size)
	}
}

// An arena's file may end within a page.
func TestMapHugeOfAnySize(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, pageSize, pageSize + 1, hugePage - 1, hugePage, hugePage + 1} {
		f, err := os.Create(filepath.Join(t.TempDir(), "arena"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(int64(size)); err != nil {
			t.Fatal(err)
		}
		mem, err := mapHuge(f, size)
		if err != nil {
			t.Fatal(err)
		}
		if len(mem) < size {
			t.Errorf("%d bytes of %d are mapped", len(mem), size)
		}
		mem[size-1] = 7
		unmapHuge(mem)
		got := make([]byte, size)
		if _, err := f.ReadAt(got, 0); err != nil || got[size-1] != 7 {
			t.Errorf("size %d: read %d (%v), want 7", size, got[size-1], err)
		}
	}
}
