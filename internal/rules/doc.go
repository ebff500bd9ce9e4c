// SPDX-License-Identifier: Apache-2.0

// Package rules holds no code, only tests: what every file and package of this
// module has to keep to, as far as a program can tell. A rule that one file
// alone can break and a linter knows is in .golangci.yml; here are those that
// look at the tree as a whole, or that no linter has.
//
// A test that fails names the file and says what to do. Where a rule has
// exceptions they are listed beside it, each with its reason, and an exception
// that is no longer needed fails too.
package rules
