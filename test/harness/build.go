// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

const module = "github.com/opencomputer/oc"

// BuildOC builds this tree's oc to a path, with another stamp of the engine than
// the oc under test has: to the engine, the two are different releases that
// cannot read each other's images.
func BuildOC(ctx context.Context, path, stamp string) error {
	return build(ctx, path, module+"/cmd/oc", "-X "+module+"/internal/buildinfo.version="+stamp+
		" -X "+module+"/internal/buildinfo.engine="+stamp+" -X gvisor.dev/gvisor/runsc/version.version="+stamp)
}

// BuildGuest builds the workload of the benchmarks, a static binary, to a path.
func BuildGuest(ctx context.Context, path string) error {
	return build(ctx, path, module+"/bench/guest", "")
}

// build uses the flags of the Makefile, so that what it compiled is used again.
func build(ctx context.Context, path, pkg, ldflags string) error {
	c := exec.CommandContext(ctx, "go", "build", "-ldflags", strings.TrimSpace("-s -w "+ldflags), "-o", path, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Use has the server, which is down, started from another oc from now on, and
// called through it.
func (s *Server) Use(binary string) { s.binary = binary }
