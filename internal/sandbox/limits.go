// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// Limits are the defaults and bounds of this node.
type Limits struct {
	DefaultCPUs, MaxCPUs                      int
	DefaultMemoryMB, MinMemoryMB, MaxMemoryMB int
	DefaultDiskMB, MinDiskMB, MaxDiskMB       int
	PidsMax                                   int
}

// perStart is what starting a sandbox brings into memory at once, before its
// guest grows or loads: the engine and its helper, in bytes.
const perStart = 64 << 20

// DefaultLimits are those of the API contract within what this machine has:
// memory is in bytes.
func DefaultLimits(memory int64) Limits {
	total := int(memory >> 20)
	return Limits{
		DefaultCPUs: 1, MaxCPUs: runtime.NumCPU(),
		DefaultMemoryMB: min(4096, total/2), MinMemoryMB: 128, MaxMemoryMB: total,
		DefaultDiskMB: 20480, MinDiskMB: 64, MaxDiskMB: 262144,
		PidsMax: pidsMax(),
	}
}

// pidsMax is how many processes and threads a sandbox may have: each takes
// about ten of the host's, which must not run out of them.
func pidsMax() int {
	const least, most, share = 512, 4096, 32
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return least
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return min(max(n/share, least), most)
}

// complete fills in defaults and checks bounds.
func (l Limits) complete(sb *meta.Sandbox) error {
	for _, v := range []struct {
		what          string
		value         *int
		def, min, max int
	}{
		{"cpuCount", &sb.CPUs, l.DefaultCPUs, 1, l.MaxCPUs},
		{"memoryMB", &sb.MemoryMB, l.DefaultMemoryMB, l.MinMemoryMB, l.MaxMemoryMB},
		{"diskMB", &sb.DiskMB, l.DefaultDiskMB, l.MinDiskMB, l.MaxDiskMB},
	} {
		if *v.value == 0 {
			*v.value = v.def
		}
		if *v.value < v.min || *v.value > v.max {
			return fault.New(fault.Invalid, "%s is %d; it must be from %d to %d on this machine", v.what, *v.value, v.min, v.max)
		}
	}
	if err := checkTimeout(sb.TimeoutSec); err != nil {
		return err
	}
	return checkLabels(*sb)
}

// Bounds of what a request may store.
const (
	maxName    = 100 // characters
	maxEntries = 256
	maxEntry   = 32 << 10
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func checkLabels(sb meta.Sandbox) error {
	if utf8.RuneCountInString(sb.Name) > maxName || strings.ContainsFunc(sb.Name, unicode.IsControl) {
		return fault.New(fault.Invalid, "the name must have at most %d printable characters", maxName)
	}
	for what, m := range map[string]map[string]string{"envs": sb.Envs, "metadata": sb.Metadata} {
		if len(m) > maxEntries {
			return fault.New(fault.Invalid, "%s has %d entries; at most %d are allowed", what, len(m), maxEntries)
		}
		for k, v := range m {
			if len(k)+len(v) > maxEntry {
				return fault.New(fault.Invalid, "%s entry %.40q is longer than %d bytes", what, k, maxEntry)
			}
			if what == "envs" && (!envName.MatchString(k) || strings.ContainsRune(v, 0)) {
				return fault.New(fault.Invalid, "%.40q is not a valid environment variable", k)
			}
		}
	}
	return nil
}

// maxTimeout is the longest rolling timeout, in seconds: a year.
const maxTimeout = 365 * 24 * 3600

func checkTimeout(seconds int) error {
	if seconds < 0 || seconds > maxTimeout {
		return fault.New(fault.Invalid, "timeout is %d s; it must be from 0 (never) to %d", seconds, maxTimeout)
	}
	return nil
}

// pidsPerMB bounds the processes of a small sandbox: each costs about 1.5 MB
// (guest, stub, engine), and a fork bomb must meet its own limit before the
// kernel, short of memory, picks a victim among the guest's processes.
const pidsPerMB = 0.5

// shape is what the engine is told.
func (l Limits) shape(sb meta.Sandbox) engine.Shape {
	return engine.Shape{
		CPUs: sb.CPUs, MemoryBytes: int64(sb.MemoryMB) << 20, DiskBytes: int64(sb.DiskMB) << 20,
		PidsMax: min(l.PidsMax, int(float64(sb.MemoryMB)*pidsPerMB)),
	}
}
