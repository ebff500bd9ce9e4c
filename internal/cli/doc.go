// SPDX-License-Identifier: Apache-2.0

// Package cli is the oc command line: it parses arguments, calls the public SDK
// (package client) and prints.
//
// Main runs one command line in the calling process, with the streams,
// environment and signals that it is given, so that tests run it as a shell
// does. Each command is in a file of its own, named after it.
//
// Invariants:
//
//   - Data goes to standard output; progress, warnings and errors to standard
//     error. With --json standard output is one JSON document.
//   - The exit code says what went wrong (see the Exit constants); exec and shell
//     give the remote one.
//   - What a server or a sandbox says is printed without control characters, except
//     the output of exec and shell, which is passed on byte for byte.
//   - A terminal that was put into raw mode is restored on every path.
//   - Nothing that a sandbox sends is written outside the directory named by the
//     user.
//
// The package must not import the server's packages: it knows of sandboxes only
// what the API tells. internal/fault is shared for errors with a hint.
package cli
