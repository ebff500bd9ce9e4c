// SPDX-License-Identifier: Apache-2.0

// Package buildinfo says which build this binary is.
//
// Two strings are stamped in by the linker (see the Makefile): the version of
// the product, which changes with every commit, and the stamp of the engine,
// which changes only when an image written by the engine could no longer be
// read. The package also refuses, at compile time, a build that would not be
// static: with cgo the binary needs a dynamic loader, which does not exist in
// the empty root directory that the engine moves itself into.
//
// The package imports nothing of the project, and nothing of the engine.
package buildinfo

// Set by the linker with -X. They are written nowhere else.
var (
	version = "dev"
	engine  = "unstamped"
)

// Version is the product's version as git describes it, for instance
// "v1.2.0-3-gabcdef0", or "dev" in a binary that was not made by the Makefile.
func Version() string { return version }

// Engine is the engine's stamp, for instance
// "oc-engine-1+gvisor-160fafc42237". The engine refuses every image that
// carries another one. It is "unstamped" in a binary that was not made by the
// Makefile; such a binary must not write images.
func Engine() string { return engine }

// Stamped tells whether the binary was made by the Makefile and so may write
// images that a later build is able to judge.
func Stamped() bool { return engine != "unstamped" }
