// SPDX-License-Identifier: Apache-2.0

// Package nodebin carries the program of a node (cmd/oc-node) inside the oc
// binary, and becomes it.
//
// A process whose work is a call to a server is over in less time than the
// program's engine, server and drivers take to initialise, so the two are
// apart, in one file.
//
// The Makefile builds cmd/oc-node into the directory bin of this package before
// it builds oc. The directory always holds a README, so that the package
// compiles in a tree where nothing was built yet; only Exec fails there.
//
// The package knows bytes, not what the program does: it imports nothing of the
// project.
package nodebin

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// name is the program's file in bin, the -o of the Makefile's rule.
const name = "bin/oc-node"

//go:embed all:bin
var files embed.FS

// ErrMissing says that the tree was compiled without a program in it.
var ErrMissing = errors.New("the node's program is not embedded in this binary: run \"make build\"")

// Exec replaces the calling process by the program. It returns only when that
// failed.
func Exec(argv, env []string) error {
	f, err := load(files)
	if err != nil {
		return err
	}
	err = unix.Exec(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), argv, env)
	return errors.Join(fmt.Errorf("starting the node's program from memory: %w", err), f.Close())
}

// load puts the program into a file of memory: what runs needs a file of its own.
func load(from fs.FS) (*os.File, error) {
	program, err := from.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, err
	}
	defer program.Close()
	fd, err := unix.MemfdCreate("oc", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 all can be executed
		fd, err = unix.MemfdCreate("oc", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memory for the node's program: %w (does sysctl vm.memfd_noexec forbid it?)", err)
	}
	f := os.NewFile(uintptr(fd), "oc")
	n, err := io.Copy(f, program)
	if err == nil && n == 0 {
		err = ErrMissing
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("memory for the node's program: %w", err), f.Close())
	}
	return f, nil
}
