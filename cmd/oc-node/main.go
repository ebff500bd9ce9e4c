// SPDX-License-Identifier: Apache-2.0

// Command oc-node is the program of a node: the server (`oc serve`) with all that
// manages it, and, re-executed, the engine (runsc), its helpers and the keeper.
// It is embedded in oc, of which it has the client's commands too, so that it is
// complete by itself: this is what is kept of a build (engine/gvisor). This file
// only decides which of them a process is.
package main

import (
	"os"

	_ "github.com/opencomputer/oc/internal/buildinfo" // guards against cgo builds
	"github.com/opencomputer/oc/internal/engine/gvisor"
	"github.com/opencomputer/oc/internal/engine/gvisor/helper"
	"github.com/opencomputer/oc/internal/engine/gvisor/runsc"
	"github.com/opencomputer/oc/internal/engine/gvisor/shape"
)

func main() {
	if runsc.Invoked(os.Args) {
		var ours bool
		if os.Args, ours = shape.Apply(os.Args); ours {
			runsc.GiveHeadroom()
		}
		runsc.Main()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == gvisor.HelperCommand {
		os.Exit(helper.Main())
	}
	os.Exit(run(os.Args))
}
