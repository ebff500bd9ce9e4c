// SPDX-License-Identifier: Apache-2.0

// Command checker is the program that tests run inside a sandbox to compare its
// whole memory and disk before and after.
//
// `checker serve PAGES DIR` holds areas of memory of every kind that there is and
// a tree of files, changes them at random when it is told to, and remembers what
// must be in them. `checker ask WORD…` is its client. The words:
//
//	update SEED N    make N random changes
//	run SEED         begin to make random changes
//	stop             stop that, and print how many were made
//	hash             print a hash of all memory, one of the whole tree, and the number of changes so far
//	check            compare everything with what must be there
//
// The same changes to the same state always give the same contents. Every change
// is noted before anything else happens, so that a copy of the process that goes
// on from any instant can check itself.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/opencomputer/oc/test/asked"
)

// address is where the program in the sandbox is asked.
const address = "@oc-checker"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "checker:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "serve":
		pages, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return serve(pages, args[2])
	case len(args) > 1 && args[0] == "ask":
		return ask(strings.Join(args[1:], " "))
	}
	return errors.New("usage: checker serve PAGES DIR | checker ask WORD…")
}

// serve is what is checked.
func serve(pages int, dir string) error {
	debug.SetGCPercent(20) // little beside what is checked
	w, err := newWorld(pages, dir)
	if err != nil {
		return err
	}
	return asked.Serve(address, w.do)
}

// ask is its client.
func ask(request string) error {
	line, err := asked.Ask(address, request)
	fmt.Print(line)
	return err
}
