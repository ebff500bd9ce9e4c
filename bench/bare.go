// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bare is the engine by hand: oc as runsc, one command per step, the guest
// program as PID 1 in place of our agent.
type bare struct {
	binary string
	dir    string
	mu     sync.Mutex
	boxes  int // made so far
	images int
}

var _ subject = (*bare)(nil)

// newBare lays out the bundle below dir.
func newBare(binary, dir, erofs string) (*bare, error) {
	b := &bare{binary: binary, dir: dir}
	for _, d := range []string{b.root(), b.bundle(), b.disks()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("runsc: %w", err)
		}
	}
	return b, writeBundle(b.bundle(), erofs, b.disks())
}

func (b *bare) root() string    { return filepath.Join(b.dir, "root") }
func (b *bare) bundle() string  { return filepath.Join(b.dir, "bundle") }
func (b *bare) disks() string   { return filepath.Join(b.dir, "disks") }
func (b *bare) logFile() string { return filepath.Join(b.dir, "runsc.log") }

// command is a runsc command with the flags that fit the bundle.
func (b *bare) command(ctx context.Context, args ...string) *exec.Cmd {
	flags := []string{
		"--root=" + b.root(),
		"--log=" + b.logFile(),
		"--platform=systrap",
		"--network=none",
		"--ignore-cgroups",
		"--overlay2=root:dir=" + b.disks(),
	}
	c := exec.CommandContext(ctx, b.binary)
	c.Args = append(append([]string{"runsc"}, flags...), args...)
	return c
}

// detached runs a command whose standard streams become the sandbox's: they are
// /dev/null, because a restore wants the same kind as there was.
func (b *bare) detached(ctx context.Context, args ...string) error {
	if err := b.command(ctx, args...).Run(); err != nil {
		return fmt.Errorf("runsc %s: %w: %s", args[0], err, b.log())
	}
	return nil
}

// output runs a command and gives what it printed.
func (b *bare) output(ctx context.Context, args ...string) (string, error) {
	c := b.command(ctx, args...)
	var complaints bytes.Buffer
	c.Stderr = &complaints
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("runsc %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaints.Bytes()))
	}
	return string(out), nil
}

// log is the end of runsc's log, for error messages.
func (b *bare) log() string {
	const most = 1000
	text, err := os.ReadFile(b.logFile())
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(text[max(0, len(text)-most):]))
}

// newID gives ids of one length: runsc takes prefixes for ids.
func (b *bare) newID() box {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.boxes++
	return box(fmt.Sprintf("bare-%05d", b.boxes))
}

func (b *bare) Create(ctx context.Context) (box, error) {
	id := b.newID()
	if err := b.detached(ctx, "run", "--detach", "--bundle="+b.bundle(), string(id)); err != nil {
		return "", err
	}
	return id, b.Exec(ctx, id)
}

// Serve has nothing to do: the guest program is PID 1.
func (b *bare) Serve(context.Context, box) error { return nil }

func (b *bare) Ask(ctx context.Context, id box, words ...string) (string, error) {
	return b.output(ctx, append([]string{"exec", string(id), guestPath, "ask"}, words...)...)
}

func (b *bare) Exec(ctx context.Context, id box) error {
	return checkAnswer(b.output(ctx, "exec", string(id), okPath))
}

func (b *bare) Checkpoint(ctx context.Context, id box) (image, error) {
	b.mu.Lock()
	b.images++
	dir := filepath.Join(b.dir, "images", fmt.Sprint(b.images))
	b.mu.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return image{}, fmt.Errorf("runsc: %w", err)
	}
	_, err := b.output(ctx, "checkpoint", "--leave-running", "--image-path="+dir, string(id))
	return image{box: id, id: dir}, err
}

func (b *bare) Forget(_ context.Context, img image) error { return os.RemoveAll(img.id) }

func (b *bare) Restore(ctx context.Context, id box, img image) error {
	if err := b.Kill(ctx, id); err != nil {
		return err
	}
	return b.load(ctx, id, img)
}

// load makes a sandbox of an image and waits for its first answer.
func (b *bare) load(ctx context.Context, id box, img image) error {
	err := b.detached(ctx, "restore", "--detach", "--background", "--image-path="+img.id, "--bundle="+b.bundle(), string(id))
	if err != nil {
		return err
	}
	return b.Exec(ctx, id)
}

// Outage is all of the restore: the old sandbox has to go before the new one
// can have its id, and to be saved before it goes.
func (b *bare) Outage(ctx context.Context, id box, img image, save bool) (time.Duration, error) {
	var saved image
	took, err := timed(func() (err error) {
		if save {
			if saved, err = b.Checkpoint(ctx, id); err != nil {
				return err
			}
		}
		return b.Restore(ctx, id, img)
	})
	if saved.id != "" {
		err = errors.Join(err, b.Forget(ctx, saved))
	}
	return took, err
}

func (b *bare) Spawn(ctx context.Context, img image, n int) ([]box, error) {
	ids := make([]box, n)
	for i := range ids {
		ids[i] = b.newID()
	}
	return ids, together(ids, func(id box) error { return b.load(ctx, id, img) })
}

func (b *bare) Kill(ctx context.Context, ids ...box) error {
	return together(ids, func(id box) error {
		_, err := b.output(ctx, "delete", "--force", string(id))
		return err
	})
}

func (b *bare) Memory() (int64, error) { return memoryOf(b.dir) }

// close ends what is left.
func (b *bare) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := b.output(ctx, "list", "--quiet")
	errs := []error{err}
	for _, id := range strings.Fields(out) {
		errs = append(errs, b.Kill(ctx, box(id)))
	}
	// The empty network namespace of its gofers, which runsc keeps mounted.
	if err := unix.Unmount(filepath.Join(b.root(), "null-netns"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("unmounting runsc's network namespace: %w", err))
	}
	return errors.Join(errs...)
}
