// SPDX-License-Identifier: Apache-2.0

// Package agentbin carries the agent, the program that is PID 1 of every
// sandbox, inside the oc binary.
//
// The Makefile builds cmd/oc-agent into the directory bin of this package
// before it builds oc. The directory always holds a README, so that the
// package compiles in a tree where nothing was built yet; only Binary fails
// there.
//
// The package knows bytes, not what the agent does: it imports nothing of the
// project.
package agentbin

import (
	"embed"
	"errors"
	"io/fs"
)

// name is the agent's file in bin, the -o of the Makefile's rule.
const name = "bin/oc-agent"

//go:embed all:bin
var files embed.FS

// ErrMissing says that the tree was compiled without an agent in it.
var ErrMissing = errors.New("the agent is not embedded in this binary: run \"make build\"")

// Binary is the agent's executable, a static ELF file for linux/amd64. The
// caller owns the slice. It fails with ErrMissing where the agent was not built
// before this package.
func Binary() ([]byte, error) { return read(files) }

// read is Binary over any file system, so that a test can take the agent away.
func read(fsys fs.FS) ([]byte, error) {
	b, err := fs.ReadFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(b) == 0) {
		return nil, ErrMissing
	}
	return b, err
}
