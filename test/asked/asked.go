// SPDX-License-Identifier: Apache-2.0

// Package asked is how a test's or a benchmark's program in a sandbox is talked
// to: it serves on an abstract unix socket (no file, no permissions, no network),
// and the same program, executed in the sandbox by any means, is its client.
// One connection is one request, a line, and its answer, a line. The package knows
// neither what is asked nor whose sandbox it is.
package asked

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// patience bounds how long a client waits for the server to listen.
const patience = 20 * time.Second

// failed begins an answer that is an error.
const failed = "error: "

// Serve answers one request at a time with what do makes of its words, for ever.
// It returns only when it cannot listen or accept.
func Serve(address string, do func(words []string) (string, error)) error {
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
		answer(c, do)
	}
}

// answer serves one connection. A client that went away is its own loss.
func answer(c net.Conn, do func(words []string) (string, error)) {
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	out, err := do(strings.Fields(line))
	if err != nil {
		out = failed + err.Error()
	}
	fmt.Fprintln(c, out)
}

// Ask sends one request and gives the line that answers it. It waits until
// somebody listens, for 20 seconds. What do failed with is its error.
func Ask(address, request string) (string, error) {
	c, err := dial(address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, request); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", err
	}
	if msg, ok := strings.CutPrefix(line, failed); ok {
		return "", errors.New(strings.TrimSpace(msg))
	}
	return line, nil
}

func dial(address string) (net.Conn, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("unix", address)
		if err == nil || time.Now().After(deadline) {
			return c, err
		}
	}
}
