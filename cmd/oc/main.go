// SPDX-License-Identifier: Apache-2.0

// Command oc is OpenComputer's one binary: the command line, the server
// (`oc serve`), and, re-executed, the engine (runsc), its helpers and the
// keeper. This file only decides which of them a process is.
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
		os.Args = shape.Apply(os.Args)
		runsc.Main()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == gvisor.HelperCommand {
		os.Exit(helper.Main())
	}
	os.Exit(run(os.Args))
}
