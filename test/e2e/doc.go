// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the end-to-end tests: what the product promises, proven on
// real sandboxes through the built oc and the HTTP API.
//
// There is one test per promise, named as a sentence. Most of them share one
// server, on which each makes sandboxes of its own; those that stop, damage or
// fill a server have their own. OC_TEST_LONG=1 runs the same code with larger
// counts.
package e2e
