// SPDX-License-Identifier: Apache-2.0

package runsc

import (
	"os"
	"strings"
	_ "unsafe" // for the linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/runsc/boot/filter"
	"gvisor.dev/gvisor/runsc/version"
)

//go:linkname precompiledPrograms gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var precompiledPrograms map[string]precompiledseccomp.Program

// Filter is the engine's filter of system calls, as it would compile it itself
// with the options that it has here: that takes it 16 ms at each start. gVisor has
// a table of compiled filters, which only its own build fills.
func Filter() precompiledseccomp.Program {
	return precompiledseccomp.Program{Name: filterName, Bytecode32: filterCode, VarOffsets: filterVars()}
}

// provideFilter puts the filter into gVisor's table. With options that are not its
// own, and in another revision of gVisor than it is of, the engine compiles one.
// So it does where it is not process 1 of its namespace, as engines are: a
// filter has the number of the process that it was compiled in.
func provideFilter() {
	if os.Getpid() != 1 || !strings.HasSuffix(version.Version(), "gvisor-"+filterRevision) {
		return
	}
	filter.ListPrecompiled() // makes the table
	if precompiledPrograms != nil {
		precompiledPrograms[filterName] = Filter()
	}
}
