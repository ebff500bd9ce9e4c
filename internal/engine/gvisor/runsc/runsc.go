// SPDX-License-Identifier: Apache-2.0

// Package runsc links gVisor's command line tool into our binary.
//
// gVisor starts itself again for each of its processes (sandbox, gofer,
// umounter) through /proc/self/exe, so the binary it lives in must recognise
// those forms of its own argv. Invoked tells whether this process is one of
// them, Main runs it. The package knows gVisor and nothing of ours.
package runsc

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

// Name is the argv[0] under which the binary is runsc.
const Name = "runsc"

// headroomVar says, in the environment of an engine, that GiveHeadroom was called in
// the process that became it.
const headroomVar = "OC_ENGINE_HEADROOM"

// headroomBytes is how much more than it would otherwise an engine may allocate before
// its garbage is collected. To save or load the state of a small guest takes as much
// as the engine has, and a collection or two in a pause took 4 ms of 25.
const headroomBytes = 12 << 20

// GiveHeadroom has the engine that Main runs collect its garbage less often, for as
// much more memory: at most 12 MiB.
func GiveHeadroom() { _ = os.Setenv(headroomVar, "1") } // fails only for names that cannot be

// Invoked tells whether argv is a form in which gVisor starts itself, or in
// which we start it: argv[0] begins with "runsc" (runsc, runsc-sandbox,
// runsc-gofer), or argv[1] is "umount" (specutils' proc umounter, whose argv[0]
// is /proc/self/exe).
func Invoked(argv []string) bool {
	if len(argv) == 0 {
		return false
	}
	return strings.HasPrefix(filepath.Base(argv[0]), Name) ||
		len(argv) > 1 && argv[1] == "umount" && argv[0] == "/proc/self/exe"
}

// Main runs runsc on os.Args and exits the process. Only what the engine uses
// and what an operator needs to look into a sandbox is linked in.
func Main() {
	provideFilter()
	if os.Getenv(headroomVar) != "" {
		// Counted as memory in use, by which Go decides when to collect; as nobody
		// ever touches it, it takes none.
		headroom := make([]byte, headroomBytes)
		defer runtime.KeepAlive(headroom)
	}
	cli.Run(nil, map[util.SubCommand]string{
		new(cmd.Create):       "",
		new(cmd.Delete):       "",
		new(cmd.Exec):         "",
		new(cmd.Kill):         "",
		new(cmd.List):         "",
		new(cmd.PS):           "",
		new(cmd.Pause):        "",
		new(cmd.Resume):       "",
		new(cmd.Run):          "",
		new(cmd.Start):        "",
		new(cmd.State):        "",
		new(cmd.Checkpoint):   "",
		new(cmd.Restore):      "",
		new(cmd.Wait):         "",
		new(cmd.Debug):        "",
		new(sentrycmd.Boot):   "internal",
		new(cmd.Gofer):        "internal",
		new(sentrycmd.Umount): "internal",
	}, []subcommands.Command{})
}
