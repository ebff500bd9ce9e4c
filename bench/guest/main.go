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
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

// address is an abstract unix socket: no file, no permissions, no network.
const address = "@oc-bench"

// patience bounds how long a client waits for the server to listen.
const patience = 20 * time.Second

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

// serve answers one request per connection, for ever.
func serve() error {
	debug.SetGCPercent(-1) // nothing here grows, and nothing shall disturb the ticks
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	defer l.Close()
	w := &workload{}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		answer(c, w)
	}
}

// answer serves one connection. A client that went away is its own loss.
func answer(c net.Conn, w *workload) {
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
		return fmt.Errorf("%s", strings.TrimSpace(msg))
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
