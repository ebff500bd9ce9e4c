// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
)

// A power cut at any step leaves no checkpoint or all of it; after Put has
// returned, all of it.
func TestPowerCutWhilePutting(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	c := newCapture(rng, 2*blockSize+1, 50, blockSize+page)
	root := filepath.Join(smallDisk(t, 512<<20), "store")
	var rec durable.Recorder
	d, err := openDir(root, rec.Disk())
	if err != nil {
		t.Fatal(err)
	}
	m := put(t, d, "cp-1", c)
	steps := rec.Steps()
	for n := range len(steps) + 1 {
		for trial := range 8 { // nothing unsynced survives, everything does, and mixtures
			after := replay(t, root, steps[:n], trial, rng)
			ids, err := after.List()
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case slices.Equal(ids, []string{"cp-1"}):
				checkStored(t, after, "cp-1", m, c, rng)
			case len(ids) > 0:
				t.Errorf("after %d of %d steps the store has %v", n, len(steps), ids)
			case n == len(steps):
				t.Error("a finished checkpoint is gone after a power cut")
			}
			if left := staged(t, after); len(left) > 0 {
				t.Errorf("after %d steps the next start leaves %v", n, left)
			}
		}
	}
}

// replay opens a store as a power cut after the steps could leave it.
func replay(t *testing.T, root string, steps []durable.Step, trial int, rng *rand.Rand) *Dir {
	t.Helper()
	keep := func(int) bool { return rng.IntN(2) == 0 }
	switch trial {
	case 0:
		keep = nil
	case 1:
		keep = func(int) bool { return true }
	}
	dir := filepath.Join(filepath.Dir(root), fmt.Sprintf("after-%x", rng.Uint64())) // in memory, like root
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.Replay(filepath.Dir(root), dir, steps, keep); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(filepath.Join(dir, filepath.Base(root)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A power cut while one is deleted leaves it whole or gone.
func TestPowerCutWhileDeleting(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	c := newCapture(rng, 10, 10, page)
	root := filepath.Join(smallDisk(t, 512<<20), "store")
	var rec durable.Recorder
	d, err := openDir(root, rec.Disk())
	if err != nil {
		t.Fatal(err)
	}
	m := put(t, d, "cp-1", c)
	before := len(rec.Steps())
	if err := d.Delete("cp-1"); err != nil {
		t.Fatal(err)
	}
	steps := rec.Steps()
	for n := before; n <= len(steps); n++ {
		for trial := range 8 {
			after := replay(t, root, steps[:n], trial, rng)
			ids, err := after.List()
			if err != nil {
				t.Fatal(err)
			}
			if len(ids) > 0 && n == len(steps) {
				t.Errorf("a deleted checkpoint is back: %v", ids)
			}
			if len(ids) > 0 {
				checkStored(t, after, "cp-1", m, c, rng)
			}
		}
	}
}

// Whatever step of a Put fails, nothing is left, and the next Put succeeds.
func TestEveryStepCanFail(t *testing.T) {
	t.Parallel()
	c := newCapture(seeded(t), 100, 100, page)
	errDisk := errors.New("disk broke")
	for n := 0; ; n++ {
		began, failed := false, false
		first := 0
		rec := durable.Recorder{}
		rec.Fail = func(i int, _ durable.Step) error {
			if began && !failed && i-first == n {
				failed = true
				return errDisk
			}
			return nil
		}
		d, err := openDir(filepath.Join(smallDisk(t, 512<<20), "store"), rec.Disk())
		if err != nil {
			t.Fatal(err)
		}
		began, first = true, len(rec.Steps())
		_, err = d.Put(t.Context(), testManifest("cp-1"), c.capture(), nil)
		if !failed {
			if err != nil || n < 10 {
				t.Errorf("the %d steps of a Put: %v", n, err)
			}
			return
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("step %d failed, Put said %v", n, err)
		}
		if ids, err := d.List(); err != nil || len(ids) > 0 {
			t.Errorf("step %d failed, left %v, %v", n, ids, err)
		}
		if left := staged(t, d); len(left) > 0 {
			t.Errorf("step %d failed, left in staging %v", n, left)
		}
		put(t, d, "cp-1", c)
	}
}

// smallDisk mounts a file system of the size, in bytes.
func smallDisk(t testing.TB, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mounting a small disk (run the tests as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	const room = 2 << 20
	dir := smallDisk(t, room)
	d, err := OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	rng := seeded(t)
	full, err := d.Free()
	if err != nil || full <= 0 || full > room {
		t.Fatalf("Free: %d, %v", full, err)
	}
	for _, pages := range []int{room + page, room - page, 10 * room} {
		c := newCapture(rng, 100, 100, pages)
		_, err := d.Put(t.Context(), testManifest("cp-big"), c.capture(), nil)
		if f := fault.As(err); err == nil || f.Kind != fault.Unavailable || f.Hint == "" {
			t.Errorf("Put of %d bytes on a disk of %d: %v", pages, room, err)
		}
		if free, err := d.Free(); err != nil || free != full {
			t.Errorf("%d bytes are free after a failure, %v; %d were before", free, err, full)
		}
	}
	c := newCapture(rng, 100, 100, room/2)
	m := put(t, d, "cp-fits", c)
	if _, err := d.Put(t.Context(), testManifest("cp-more"), c.capture(), nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Put beside another: %v", err)
	}
	checkStored(t, d, "cp-fits", m, c, rng)
	// Even a full disk lets a checkpoint go, which is what makes room.
	if err := fill(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete("cp-fits"); err != nil {
		t.Errorf("Delete on a full disk: %v", err)
	}
}

// fill writes a file until the disk is full.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = f.Write(make([]byte, page))
	}
	if !errors.Is(err, unix.ENOSPC) {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
