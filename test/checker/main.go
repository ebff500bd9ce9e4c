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
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// address is an abstract unix socket: no file, no permissions, no network.
const address = "@oc-checker"

// patience bounds how long a client waits for the server to listen.
const patience = 20 * time.Second

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

// serve answers one request per connection, for ever.
func serve(pages int, dir string) error {
	debug.SetGCPercent(20) // little beside what is checked
	w, err := newWorld(pages, dir)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	defer l.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		answer(c, w)
	}
}

// answer serves one connection. A client that went away is its own loss.
func answer(c net.Conn, w *world) {
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	out, err := w.do(strings.Fields(line))
	if err != nil {
		out = "error: " + err.Error()
	}
	fmt.Fprintln(c, out)
}

// ask sends one request and prints the answer. It waits until somebody listens.
func ask(request string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, request); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if msg, ok := strings.CutPrefix(line, "error: "); ok {
		return errors.New(strings.TrimSpace(msg))
	}
	fmt.Print(line)
	return nil
}

func dial() (net.Conn, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("unix", address)
		if err == nil || time.Now().After(deadline) {
			return c, err
		}
	}
}
