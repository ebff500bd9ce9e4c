// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/opencomputer/oc/client"
)

// templateName is what the benchmark's root file system is imported as.
const templateName = "bench"

// Shape of our sandboxes. The bare engine's have no limit.
const (
	boxMemoryMB = 2048
	boxDiskMB   = 8192
)

// ours is OpenComputer, used through its client package as any program would.
type ours struct {
	server *server
	mu     sync.Mutex
	names  int // checkpoints named so far
}

var _ subject = (*ours)(nil)

// newOurs starts a server below dir and gives it the root file system, with its
// image made.
func newOurs(ctx context.Context, binary, dir string, archive []byte, with settings) (*ours, error) {
	s, err := startServer(ctx, binary, dir, with)
	if err != nil {
		return nil, err
	}
	o := &ours{server: s}
	err = o.importTemplate(ctx, archive)
	if err == nil {
		var first box
		if first, err = o.Create(ctx); err == nil {
			err = o.Kill(ctx, first)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.stop(), fmt.Errorf("the server's complaints end: %s", s.log()))
	}
	return o, nil
}

func (o *ours) Create(ctx context.Context) (box, error) {
	sb, err := o.server.client.CreateSandbox(ctx, client.CreateSandboxRequest{
		TemplateID: templateName, CPUCount: cpus(), MemoryMB: boxMemoryMB, DiskMB: boxDiskMB,
	}, nil)
	if err != nil {
		return "", fmt.Errorf("oc: create: %w", err)
	}
	return box(sb.ID), o.Exec(ctx, box(sb.ID))
}

func (o *ours) Serve(ctx context.Context, b box) error {
	_, err := o.server.client.StartExec(ctx, string(b), client.ExecRequest{
		Cmd: guestPath, Args: []string{"serve"}, User: "root", Cwd: "/",
	})
	if err != nil {
		return fmt.Errorf("oc: starting the guest program: %w", err)
	}
	return nil
}

func (o *ours) Ask(ctx context.Context, b box, words ...string) (string, error) {
	return o.run(ctx, b, guestPath, append([]string{"ask"}, words...)...)
}

func (o *ours) Exec(ctx context.Context, b box) error {
	// An argument: a command without any would be given to a shell.
	return checkAnswer(o.run(ctx, b, okPath, "-"))
}

// run executes a program and gives what it printed.
func (o *ours) run(ctx context.Context, b box, cmd string, args ...string) (string, error) {
	r, err := o.server.client.RunExec(ctx, string(b), client.ExecRequest{
		Cmd: cmd, Args: args, User: "root", Cwd: "/", Timeout: 600,
	})
	if err != nil {
		return "", fmt.Errorf("oc: exec %s %v: %w", cmd, args, err)
	}
	if r.ExitCode != 0 {
		return "", fmt.Errorf("oc: exec %s %v: exit code %d: %s", cmd, args, r.ExitCode, r.Stderr)
	}
	return r.Stdout, nil
}

// execCLI executes the first command by `oc exec`.
func (o *ours) execCLI(ctx context.Context, b box) error {
	c := exec.CommandContext(ctx, o.server.binary, "exec", string(b), "--user", "root", "--", okPath)
	c.Env = o.server.env()
	var complaints bytes.Buffer
	c.Stderr = &complaints
	out, err := c.Output()
	if err != nil {
		return fmt.Errorf("oc exec: %w: %s", err, &complaints)
	}
	return checkAnswer(string(out), nil)
}

func (o *ours) Checkpoint(ctx context.Context, b box) (image, error) {
	o.mu.Lock()
	o.names++
	name := fmt.Sprintf("bench-%d", o.names)
	o.mu.Unlock()
	c := o.server.client
	cp, err := c.CreateCheckpoint(ctx, string(b), client.CreateCheckpointRequest{Name: name})
	if err == nil && cp.Status == client.CheckpointProcessing {
		cp, err = c.WaitCheckpoint(ctx, cp.ID)
	}
	if err == nil && cp.Status != client.CheckpointReady {
		err = errors.New(cp.ErrorMsg)
	}
	if err != nil {
		return image{}, fmt.Errorf("oc: checkpoint: %w", err)
	}
	return image{box: b, id: cp.ID}, nil
}

// added is what a checkpoint added to the store, in bytes.
func (o *ours) added(ctx context.Context, img image) (int64, error) {
	cp, err := o.server.client.GetCheckpoint(ctx, img.id)
	if err != nil {
		return 0, fmt.Errorf("oc: looking at a checkpoint: %w", err)
	}
	return cp.AddedBytes, nil
}

func (o *ours) Forget(ctx context.Context, img image) error {
	if err := o.server.client.DeleteCheckpoint(ctx, string(img.box), img.id); err != nil {
		return fmt.Errorf("oc: delete a checkpoint: %w", err)
	}
	return nil
}

func (o *ours) Restore(ctx context.Context, b box, img image) error {
	return o.restore(ctx, b, img, false)
}

func (o *ours) restore(ctx context.Context, b box, img image, save bool) error {
	if _, err := o.server.client.RestoreCheckpoint(ctx, string(b), img.id, client.RestoreRequest{NoSave: !save}); err != nil {
		return fmt.Errorf("oc: restore: %w", err)
	}
	return o.Exec(ctx, b)
}

// Outage executes the first command over and over while it restores. The time
// of one command is in the answer.
func (o *ours) Outage(ctx context.Context, b box, img image, save bool) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var longest time.Duration
	last := time.Now()
	over, probed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(probed)
		for ctx.Err() == nil {
			if o.Exec(ctx, b) == nil {
				now := time.Now()
				longest, last = max(longest, now.Sub(last)), now
			}
			select {
			case <-over:
				return
			default:
			}
		}
	}()
	err := o.restore(ctx, b, img, save)
	close(over)
	if err != nil {
		cancel()
	}
	<-probed
	return max(longest, time.Since(last)), err
}

func (o *ours) Spawn(ctx context.Context, img image, n int) ([]box, error) {
	r, err := o.server.client.SpawnCheckpoint(ctx, img.id, client.SpawnRequest{Count: n})
	if err != nil {
		return nil, fmt.Errorf("oc: spawn: %w", err)
	}
	var boxes []box
	for _, sb := range r.All() {
		boxes = append(boxes, box(sb.ID))
	}
	return boxes, together(boxes, func(b box) error { return o.Exec(ctx, b) })
}

// Fork makes a sandbox of a running one, which has answered, and gives the
// checkpoint that may still be being stored.
func (o *ours) Fork(ctx context.Context, b box) (box, image, error) {
	r, err := o.server.client.ForkSandbox(ctx, string(b), client.SpawnRequest{})
	if err != nil {
		return "", image{}, fmt.Errorf("oc: fork: %w", err)
	}
	made := box(r.Sandboxes[0].ID)
	return made, image{box: b, id: r.Checkpoint.ID}, o.Exec(ctx, made)
}

func (o *ours) Kill(ctx context.Context, boxes ...box) error {
	return together(boxes, func(b box) error {
		if err := o.server.client.KillSandbox(ctx, string(b)); err != nil {
			return fmt.Errorf("oc: kill: %w", err)
		}
		return nil
	})
}

func (o *ours) Memory() (int64, error) { return memoryOf(o.server.data()) }

// checkAnswer checks what the first command printed.
func checkAnswer(out string, err error) error {
	if err == nil && out != okAnswer {
		err = fmt.Errorf("the first command answered %q", out)
	}
	return err
}

// together calls f for all boxes at once.
func together(boxes []box, f func(box) error) error {
	errs := make([]error, len(boxes))
	var wg sync.WaitGroup
	for i, b := range boxes {
		wg.Go(func() { errs[i] = f(b) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// importTemplate gives the server the benchmark's root file system.
func (o *ours) importTemplate(ctx context.Context, archive []byte) error {
	var said []string
	_, err := o.server.client.ImportTemplate(ctx, templateName, bytes.NewReader(archive), func(line string) { said = append(said, line) })
	if err != nil {
		return fmt.Errorf("oc: importing the template: %w; it said: %s", err, strings.Join(said, "; "))
	}
	return nil
}
