// SPDX-License-Identifier: Apache-2.0

// Command oc is OpenComputer's one binary. It is the client's commands, and
// carries the program of a node (cmd/oc-node), which it becomes for everything
// else: the server and its roles, the engine, help.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencomputer/oc/internal/buildinfo"
	"github.com/opencomputer/oc/internal/cli"
	"github.com/opencomputer/oc/internal/nodebin"
	"github.com/opencomputer/oc/internal/store/seal"
)

func main() {
	m := cli.New()
	m.Version = buildinfo.Version()
	m.NewKey = seal.Generate
	args, asEngine := os.Args, engine(os.Args)
	if !asEngine && m.Owns(args[1:]) {
		os.Exit(m.Run(context.Background(), args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
	}
	if self, err := os.Executable(); err == nil && !asEngine {
		args = append([]string{self}, args[1:]...) // a unit of the service names it
	}
	fmt.Fprintln(os.Stderr, "Error:", nodebin.Exec(args, os.Environ()))
	os.Exit(1)
}

// engine tells whether the process was started as the engine, by its name. (The
// node's program knows more forms; in those it starts itself.)
func engine(argv []string) bool { return strings.HasPrefix(filepath.Base(argv[0]), "runsc") }
