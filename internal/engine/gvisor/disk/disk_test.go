// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOverlayAttach(t *testing.T) {
	t.Parallel()
	scratch := t.TempDir()
	a, err := Overlay{}.Attach(Request{ImagePath: "/images/x", SizeBytes: 64 << 20, Dir: "/data/disks", Scratch: scratch})
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"dev.gvisor.spec.rootfs.source":  "/images/x",
		"dev.gvisor.spec.rootfs.type":    "erofs",
		"dev.gvisor.spec.rootfs.overlay": "dir=/data/disks",
		"dev.gvisor.spec.rootfs.options": "size=67108864",
	} {
		if a.Annotations[k] != want {
			t.Errorf("%s is %q, want %q", k, a.Annotations[k], want)
		}
	}
	if !slices.Contains(a.Flags, "--overlay2=root:dir=/data/disks") {
		t.Errorf("flags %q", a.Flags)
	}
	// The one mount that makes the engine start a gofer shows nothing of the host.
	if len(a.Mounts) != 1 || !slices.Contains(a.Mounts[0].Options, "ro") {
		t.Fatalf("mounts %+v", a.Mounts)
	}
	if es, err := os.ReadDir(a.Mounts[0].Source); err != nil || len(es) > 0 {
		t.Errorf("%s: %v, %v", a.Mounts[0].Source, es, err)
	}
	if _, err := (Overlay{}).Attach(Request{Scratch: filepath.Join(scratch, "empty", "x\x00")}); err == nil {
		t.Error("attached to a directory that cannot be made")
	}
}

// Usage counts what an unlinked file really takes, once, however often it is
// open, and nothing else.
func TestUsage(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), filestorePrefix+"1")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(100 * size); err != nil { // sparse
		t.Fatal(err)
	}
	if n := (Overlay{}).Usage(os.Getpid()); n != 0 {
		t.Errorf("an empty layer takes %d bytes", n)
	}
	if _, err := f.WriteAt(make([]byte, size), 5*size); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := (Overlay{}).Usage(os.Getpid()); n < size || n > size+size/8 {
		t.Errorf("a layer of %d bytes takes %d", size, n)
	}
}

func TestMemoryUsage(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	fd, err := unix.MemfdCreate("runsc-memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if n := MemoryUsage(os.Getpid()); n != size {
		t.Errorf("%d bytes of memory, want %d", n, size)
	}
	if n := MemoryUsage(-1); n != 0 {
		t.Errorf("no process takes %d bytes", n)
	}
}
