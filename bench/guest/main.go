// SPDX-License-Identifier: Apache-2.0

// Command guest is the program that the benchmarks run inside a sandbox.
//
// `guest serve` is the workload: it holds as much random memory and as many
// files as it was told to, ticks every millisecond while it is told to, and
// answers on an abstract unix socket. `guest ask WORD…` is its client, so that
// any way of executing a program in the sandbox can talk to it. The words:
//
//	fill MIB         hold that much random memory
//	change PERCENT   make as many of its pages random anew
//	files DIR N      make N files of 300 bytes below DIR
//	tick             start to tick
//	gap              stop, and print the longest time between two ticks in microseconds
//	sum              print a checksum of the memory
//
// It is the same in our sandboxes and in those of the bare engine, and knows of
// neither.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/opencomputer/oc/test/asked"
)

// address is where the program in the sandbox is asked.
const address = "@oc-bench"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) > 1 && args[0] == "ask":
		return ask(strings.Join(args[1:], " "))
	}
	return fmt.Errorf("usage: guest serve | guest ask WORD…")
}

// serve is the workload.
func serve() error {
	debug.SetGCPercent(-1) // nothing here grows, and nothing shall disturb the ticks
	return asked.Serve(address, new(workload).do)
}

// ask is its client.
func ask(request string) error {
	line, err := asked.Ask(address, request)
	fmt.Print(line)
	return err
}
