// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

// subject is one side of the comparison. Both do the same things to the same
// root file system and program, so that each measure is written once. Every
// method returns when its work is done; those that bring up a sandbox return
// when it has answered a first command.
type subject interface {
	// Create makes a sandbox.
	Create(ctx context.Context) (box, error)
	// Serve makes sure that the guest program serves in it.
	Serve(ctx context.Context, b box) error
	// Ask executes `guest ask` in it and gives the answer.
	Ask(ctx context.Context, b box, words ...string) (string, error)
	// Exec executes the first command in it.
	Exec(ctx context.Context, b box) error
	// Checkpoint makes a checkpoint of a sandbox, which runs on.
	Checkpoint(ctx context.Context, b box) (image, error)
	// Forget removes a checkpoint.
	Forget(ctx context.Context, img image) error
	// Restore puts a sandbox back to a checkpoint.
	Restore(ctx context.Context, b box, img image) error
	// Outage restores and gives the longest time without an answer meanwhile. What is
	// replaced is saved or lost.
	Outage(ctx context.Context, b box, img image, save bool) (time.Duration, error)
	// Spawn makes n sandboxes of a checkpoint at once. It gives those that came
	// up also when others did not.
	Spawn(ctx context.Context, img image, n int) ([]box, error)
	// Kill ends sandboxes.
	Kill(ctx context.Context, boxes ...box) error
	// Memory is what all processes of this side take, in bytes.
	Memory() (int64, error)
}

// box is the id of a sandbox.
type box string

// image is a checkpoint.
type image struct {
	box box    // the sandbox it was made of
	id  string // the checkpoint's id, or its directory
}

// timed gives how long f takes.
func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}
