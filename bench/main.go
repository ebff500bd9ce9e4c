// SPDX-License-Identifier: Apache-2.0

// Command bench measures OpenComputer beside the bare engine and prints a
// Markdown table: medians of repeated runs, least and most, and the ratio.
//
// The bare engine is what one would do by hand: our node's program as runsc, with
// its run, exec, checkpoint and restore, on the same root file system image
// and the same kind of writable layer, with the same guest program (package
// guest). Ours is used as any program would: through package client, and
// through the command line where that is what is measured. The benchmark knows
// nothing internal; each measure is written once, for both (subject).
//
// What is promised of later checkpoints, forks, far stores and the server itself
// has a table of its own, where each line says what it is compared with (promise),
// on servers with fresh stores.
//
// The measure dedup is another comparison: of what series of checkpoints take in
// our store with what tar and zstd, and restic, make of the same files. Those it
// reads by package store, which alone knows where the state of a checkpoint is.
//
// It runs a server of its own on a temporary directory and leaves nothing
// behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures, and prints what it has even when something failed.
func run(ctx context.Context, args []string, out, say io.Writer) (err error) {
	opts, err := parseOptions(args, say)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("sandboxes need root: sudo make bench")
	}
	dir, err := os.MkdirTemp(opts.dir, "oc-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if e := errors.Join(endLeftovers(dir), os.RemoveAll(dir)); e != nil {
			err = errors.Join(err, e)
		}
	}()
	// A copy: a build in the meantime must not change what is measured.
	if opts.binary, err = copyBinary(opts.binary, dir); err != nil {
		return fmt.Errorf("%w: make build makes it", err)
	}
	began := time.Now()
	before := machine(opts.binary, dir)
	b := &bench{opts: opts, dir: dir, say: say}
	defer func() {
		if err = errors.Join(err, b.close()); err != nil && b.ours != nil {
			fmt.Fprintf(say, "The server's complaints end:\n%s\n", b.ours.server.log())
		}
	}()
	if err := b.open(ctx); err != nil {
		return err
	}
	err = b.run(ctx)
	fmt.Fprintf(out, "`make bench ARGS=%q`, %d runs, on %s\n", strings.Join(args, " "), opts.runs, before)
	fmt.Fprintf(out, "(%s at the end, %s later).\n\n", load(), time.Since(began).Round(time.Second))
	if len(b.rows) > 0 {
		table(out, b.rows)
		fmt.Fprintln(out)
	}
	if len(b.promises) > 0 {
		promisedTable(out, b.promises)
		fmt.Fprintln(out)
	}
	if len(b.stored) > 0 {
		storedTable(out, b.stored)
	}
	return err
}

func copyBinary(binary, dir string) (string, error) {
	b, err := os.ReadFile(binary)
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, "oc")
	return to, os.WriteFile(to, b, 0o755)
}

// open brings up both sides. The bare engine runs from the image that our
// server made of the benchmark's root file system.
func (b *bench) open(ctx context.Context) error {
	var err error
	if b.archive, err = rootfs(ctx, b.dir); err != nil {
		return err
	}
	if b.ours, err = newOurs(ctx, b.opts.binary, filepath.Join(b.dir, "ours"), b.archive, settings{}); err != nil {
		return err
	}
	image, err := b.ours.server.image()
	if err != nil {
		return err
	}
	engine, err := b.ours.server.engine()
	if err != nil {
		return err
	}
	b.bare, err = newBare(engine, filepath.Join(b.dir, "bare"), image)
	return err
}

// close ends both sides with all that they run.
func (b *bench) close() (err error) {
	if b.bare != nil {
		err = b.bare.close()
	}
	if b.ours != nil {
		err = errors.Join(err, b.ours.server.stop())
	}
	return err
}
