// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"math"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/buildinfo"
	"github.com/opencomputer/oc/internal/cli"
	"github.com/opencomputer/oc/internal/store/seal"
)

// run is the command line: the client's commands, and those of this node.
func run(args []string) int {
	// What was inherited is not for our children (a build of a template found
	// its descriptor 12 taken). Where the kernel lacks the call they get it.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	m := cli.New(serveCommand(), upCommand(), downCommand(), statusCommand(), keyCommand(), installServiceCommand(), keeperCommand())
	m.Version = buildinfo.Version()
	m.NewKey = seal.Generate
	return m.Run(context.Background(), args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ())
}

// wantsJSON tells whether the global --json was given.
func wantsJSON(cmd *cobra.Command) bool {
	b, err := cmd.Flags().GetBool("json")
	return err == nil && b
}

// printJSON prints the one document of a command.
func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}
