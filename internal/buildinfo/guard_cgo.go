// SPDX-License-Identifier: Apache-2.0

//go:build cgo && !race

package buildinfo

// This file makes a build with cgo fail, and its error is the explanation. A
// dynamically linked oc cannot start itself again inside the engine's empty
// root directory. Test builds under the race detector need cgo and are let
// through: they never become an engine.
var _ = build_with_CGO_ENABLED_0_or_run_make_build
