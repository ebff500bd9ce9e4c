// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// checkpointObject gives the file of a checkpoint's object in the store.
func checkpointObject(t *testing.T, s *harness.Server, cp string) string {
	t.Helper()
	objects, err := filepath.Glob(filepath.Join(s.Data, "store", "ckpt", "*"))
	must(t, err)
	for _, path := range objects {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(`"checkpoint": "`+cp+`"`)) {
			return path
		}
	}
	t.Fatalf("%s has no object in the store", cp)
	return ""
}

// checkpointFiles gives the files that a server keeps for a checkpoint alone and
// cannot do without.
func checkpointFiles(t *testing.T, s *harness.Server, cp string) []string {
	t.Helper()
	object := checkpointObject(t, s, cp)
	own, err := filepath.Glob(filepath.Join(s.Data, "store", "packs", filepath.Base(object), "*"))
	must(t, err)
	own = slices.DeleteFunc(own, func(path string) bool { // the next checkpoint does without
		b, err := os.ReadFile(path)
		return err == nil && bytes.HasPrefix(b, []byte("OCHASH2\n"))
	})
	if len(own) < 2 {
		t.Fatalf("the files of %s: %v", cp, own)
	}
	return append(own, object)
}

// uncache takes away what the server remembers of checkpoints' contents.
func uncache(t *testing.T, s *harness.Server) {
	t.Helper()
	cached, err := filepath.Glob(filepath.Join(s.Data, "cache", "*"))
	must(t, err)
	for _, path := range cached {
		must(t, os.RemoveAll(path))
	}
}

// flip turns one bit of a file around.
func flip(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// size of a file.
func size(t *testing.T, file string) int64 {
	t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// failsToRestore checks that a restore to the damaged checkpoint is refused with
// its name, and that the sandbox goes on counting.
func (b box) failsToRestore(cp, what string) {
	b.t.Helper()
	before := b.counted()
	out := invoke(b.t, b.s, nil, "checkpoint", "restore", b.id, cp)
	if out.Code != 5 || !strings.Contains(out.Stderr, cp) {
		b.t.Errorf("%s: want exit code 5 and the name of the checkpoint:\n%s", what, out)
	}
	if now := b.counted(); now < before {
		b.t.Errorf("%s: the sandbox went back from %d to %d", what, before, now)
	}
}

// failsToSpawn checks that a spawn of the damaged checkpoint fails with its
// name, or ends in an error with it, before long.
func failsToSpawn(t *testing.T, s *harness.Server, cp, what string) {
	t.Helper()
	res, err := api(t, s).SpawnCheckpoint(t.Context(), cp, client.SpawnRequest{})
	var refusal *client.Error
	switch {
	case errors.As(err, &refusal):
		if refusal.Status != 500 || !strings.Contains(refusal.Message, cp) {
			t.Errorf("%s: the spawn failed with %d %q, not 500 and the name of the checkpoint", what, refusal.Status, refusal.Message)
		}
	case err != nil:
		t.Errorf("%s: %v", what, err)
	default:
		b := adopt(t, s, res.ID)
		await(t, what+": the spawn ends in an error", func() bool { return b.get().Status == client.StatusError })
		if reason := b.get().Reason; !strings.Contains(reason, cp) {
			t.Errorf("%s: the reason does not name the checkpoint: %s", what, reason)
		}
		refused(t, s, 3, []string{cp}, "exec", b.id, "--", "true")
	}
}

// TestDamagedCheckpointIsRefusedAndTheSandboxRunsOn flips bits in, cuts short
// and takes away each file of a checkpoint.
func TestDamagedCheckpointIsRefusedAndTheSandboxRunsOn(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	b := create(t, s)
	b.count()
	b.sh("head -c 3000000 /dev/urandom >data")
	cp := b.checkpoint("precious")
	before := len(asJSON[[]client.Sandbox](t, s, "ls"))
	for _, file := range checkpointFiles(t, s, cp) {
		name, n := filepath.Base(file), size(t, file)
		at := []int64{n / 3}
		if long {
			at = []int64{10, n / 7, n / 4, n / 3} // the end of a pack is its index, which is not needed here
		}
		broken := func(what string) {
			uncache(t, s)
			b.failsToRestore(cp, what)
			failsToSpawn(t, s, cp, what)
			if cps := asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id); len(cps) != 1 || !cps[0].Damaged {
				t.Errorf("%s: the list does not show it: %+v", what, cps)
			}
		}
		healed := func() { oc(t, s, "checkpoint", "verify", cp) }
		for _, off := range at {
			flip(t, file, off)
			broken("a bit of " + name)
			flip(t, file, off)
			healed()
		}
		kept := file + ".kept"
		must(t, os.Rename(file, kept))
		broken(name + " missing")
		whole, err := os.ReadFile(kept)
		must(t, err)
		must(t, os.WriteFile(file, whole[:n/3], 0o600))
		broken(name + " cut short")
		must(t, os.Rename(kept, file))
		healed()
	}
	b.countOn(10)
	b.ticks()
	if after := len(asJSON[[]client.Sandbox](t, s, "ls")); after > before+len(checkpointFiles(t, s, cp))*8 {
		t.Errorf("%d sandboxes are listed, before there were %d", after, before)
	}
	b.restore(cp) // whole again
	b.countOn(10)
}

// TestDamageFoundWhileASpawnLoads damages what a spawn reads last of all: spawn
// returns when the sandbox has answered, and what is lost then is lost behind it.
func TestDamageFoundWhileASpawnLoads(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", harness.Settings{"load-rate": slowLoad})
	b := create(t, s)
	cp := b.checkpoint("small")
	b.heap(200, 21)
	large := b.checkpoint("heap")
	uncache(t, s)
	for _, pack := range heapPacks(t, s, large) {
		flip(t, pack, size(t, pack)/2)
	}
	x := spawn(t, s, large)
	await(t, "the spawn ends in an error", func() bool { return x.get().Status == client.StatusError })
	if reason := x.get().Reason; !strings.Contains(reason, large) {
		t.Errorf("the reason does not name the checkpoint: %s", reason)
	}
	for _, c := range asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id) {
		if want := c.ID == large; c.Damaged != want || want && !strings.Contains(c.ErrorMsg, "does not match its hash") {
			t.Errorf("%s is damaged: %v, %q", c.Name, c.Damaged, c.ErrorMsg)
		}
	}
	out := invoke(t, s, nil, "checkpoint", "spawn", large)
	if out.Code != 5 || !strings.Contains(out.Stderr, "is damaged") {
		t.Errorf("another spawn is not refused:\n%s", out)
	}
	spawn(t, s, cp).answers()
}

// heapPacks are the packs of a checkpoint that are full: with what fills them.
func heapPacks(t *testing.T, s *harness.Server, cp string) []string {
	t.Helper()
	const full = 16 << 20
	var large []string
	for _, file := range checkpointFiles(t, s, cp) {
		if size(t, file) >= full {
			large = append(large, file)
		}
	}
	if len(large) < 3 {
		t.Fatalf("only %d packs of %s are full", len(large), cp)
	}
	return large[1 : len(large)-1] // the ends hold other things too
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestCheckpointWithoutDataIsAnErrorAndNeverAFreshSandbox takes all data away
// behind the server's back.
func TestCheckpointWithoutDataIsAnErrorAndNeverAFreshSandbox(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	cp := b.checkpoint("gone")
	must(t, os.Remove(checkpointObject(t, shared, cp)))
	for _, args := range [][]string{{"checkpoint", "spawn", cp}, {"checkpoint", "restore", b.id, cp}} {
		out := invoke(t, shared, nil, args...)
		if out.Code != 3 && out.Code != 5 || !strings.Contains(out.Stderr, cp) {
			t.Errorf("want a refusal that names the checkpoint:\n%s", out)
		}
	}
	b.countOn(10)
	oc(t, shared, "checkpoint", "delete", b.id, cp)
}

// disk is a file system for a server of its own.
type disk struct {
	t   *testing.T
	dir string
}

// diskMB is its size; the test's server takes about half of it.
const diskMB = 1400

func smallDisk(t *testing.T) disk {
	t.Helper()
	d := disk{t, t.TempDir()}
	must(t, unix.Mount("oc-test", d.dir, "tmpfs", 0, fmt.Sprintf("size=%dm", diskMB)))
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", d.dir, err)
		}
	})
	return d
}

// free gives the space that is left, in MB.
func (d disk) free() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	must(d.t, unix.Statfs(d.dir, &st))
	return int64(st.Bavail) * st.Bsize >> 20
}

// resize changes the size, in MB, at once.
func (d disk) resize(mb int64) error {
	return unix.Mount("oc-test", d.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", mb))
}

// TestFullDiskRefusesACheckpointAndLeavesNothing runs out of space before a
// checkpoint, and again while one is being written.
func TestFullDiskRefusesACheckpointAndLeavesNothing(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	s := ownServer(t, disk.dir, nil)
	b := create(t, s)
	b.count()
	b.heap(150, 3)
	sum := b.heapSum()
	first := b.checkpoint("fits")
	b.sh("head -c 150000000 /dev/urandom >more")
	free := disk.free()

	must(t, disk.resize(diskMB-disk.free()+100))
	refused(t, s, 5, []string{"no space"}, "checkpoint", "create", b.id, "--name", "full")
	b.countOn(5)
	must(t, disk.resize(diskMB))

	// Past the check beforehand: the space goes while the checkpoint is written.
	begun := disk.free() - 8
	filled := make(chan error, 1)
	ctx, stop := context.WithTimeout(t.Context(), awaitTime)
	defer stop()
	go func() {
		for ctx.Err() == nil {
			if disk.free() < begun {
				var st unix.Statfs_t
				err := unix.Statfs(disk.dir, &st)
				filled <- errors.Join(err, disk.resize(int64(st.Blocks-st.Bfree)*st.Bsize>>20+20))
				return
			}
			<-time.After(time.Millisecond)
		}
		filled <- errors.New("nothing was seen being written")
	}()
	refused(t, s, 5, []string{"no space"}, "checkpoint", "create", b.id, "--name", "full")
	must(t, <-filled)
	must(t, disk.resize(diskMB))
	await(t, "what was written is given back", func() bool { return disk.free() >= free-20 })
	for _, c := range asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id) {
		if c.ID != first && (c.Status != client.CheckpointFailed || !strings.Contains(c.ErrorMsg, "no space")) {
			t.Errorf("%s (%s) is %s: %q", c.ID, c.Name, c.Status, c.ErrorMsg)
		}
	}

	oc(t, s, "checkpoint", "delete", b.id, first)
	b.checkpoint("full") // the name of the failed ones is free
	b.ticks()
	if got := b.heapSum(); got != sum {
		t.Errorf("the heap is %s, not %s", got, sum)
	}
}
