// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"sync"

	"github.com/opencomputer/oc/internal/agentclient"
	"github.com/opencomputer/oc/internal/meta"
)

// CreateRequest says what a new sandbox shall be. Zero values mean defaults.
type CreateRequest struct {
	Template   string // name; "" = base
	Name       string // optional label
	CPUs       int
	MemoryMB   int
	DiskMB     int
	TimeoutSec int // rolling idle timeout in seconds; 0 = never
	Envs       map[string]string
	Metadata   map[string]string
	// Progress, unless nil, is given lines for a person while the create has to
	// wait for something long, such as the build of a missing template.
	Progress func(string)
}

// Lease is the use of a running sandbox's agent by one data-plane call. While
// it is held the call counts as activity. It must be released.
type Lease struct {
	// Agent speaks to the sandbox's agent; shared, not owned by the lease.
	Agent *agentclient.Client
	// Sandbox is the row as of the acquisition.
	Sandbox meta.Sandbox
	// Timeline names the history that output offsets count in.
	Timeline string
	// Changed is closed when Agent has stopped being the sandbox's agent:
	// after an in-place restore (acquire again, with the new timeline) or when
	// the sandbox ended (acquiring again says so).
	Changed <-chan struct{}

	release func()
}

// NewLease makes a lease whose Release calls release once. Leases come from
// Acquire; this is for whoever stands in for the service.
func NewLease(agent *agentclient.Client, sb meta.Sandbox, timeline string, changed <-chan struct{}, release func()) *Lease {
	return &Lease{Agent: agent, Sandbox: sb, Timeline: timeline, Changed: changed, release: sync.OnceFunc(release)}
}

// Release ends the use. It may be called more than once.
func (l *Lease) Release() { l.release() }
