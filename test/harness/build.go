// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const module = "github.com/opencomputer/oc"

// BuildOC builds this tree's oc to a path, with another stamp of the engine than
// the oc under test has: to the engine, the two are different releases that
// cannot read each other's images. It is the program that oc embeds, which has
// all commands.
func BuildOC(ctx context.Context, path, stamp string) error {
	return buildOC(ctx, ".", "/cmd/oc-node", path, stamp)
}

// BuildCommit is BuildOC of an earlier commit of this repository; an empty stamp is
// the one that the commit has. dir is an empty directory for its files.
func BuildCommit(ctx context.Context, dir, commit, path, stamp string) error {
	tree := filepath.Join("..", "..")
	if out, err := exec.CommandContext(ctx, "git", "-C", tree, "cat-file", "-e", commit+"^{commit}").CombinedOutput(); err != nil {
		return fmt.Errorf("the commit %s, of which an earlier oc is built, is not in this clone: get its history with `git fetch --unshallow`: %w\n%s", commit, err, out)
	}
	archive := filepath.Join(dir, "tree.tar")
	for _, args := range [][]string{{"git", "-C", tree, "archive", "-o", archive, commit}, {"tar", "-x", "-C", dir, "-f", archive}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("the files of commit %s: %w\n%s", commit, err, out)
		}
	}
	if err := build(ctx, dir, filepath.Join("internal", "agentbin", "bin", "oc-agent"), module+"/cmd/oc-agent", ""); err != nil {
		return err
	}
	if stamp == "" {
		out, err := exec.CommandContext(ctx, filepath.Join(dir, "tools", "stamp"), "engine").Output()
		if err != nil {
			return fmt.Errorf("the stamp of commit %s: %w", commit, err)
		}
		stamp = strings.TrimSpace(string(out))
	}
	return buildOC(ctx, dir, "/cmd/oc", path, stamp)
}

func buildOC(ctx context.Context, dir, pkg, path, stamp string) error {
	return build(ctx, dir, path, module+pkg, "-X "+module+"/internal/buildinfo.version="+stamp+
		" -X "+module+"/internal/buildinfo.engine="+stamp+" -X gvisor.dev/gvisor/runsc/version.version="+stamp)
}

// BuildGuest builds the workload of the benchmarks, a static binary, to a path.
func BuildGuest(ctx context.Context, path string) error {
	return build(ctx, ".", path, module+"/bench/guest", "")
}

// BuildChecker builds the program that compares memory and disk, a static binary,
// to a path.
func BuildChecker(ctx context.Context, path string) error {
	return build(ctx, ".", path, module+"/test/checker", "")
}

// build builds a package of the module that dir is in. It uses the flags of the
// Makefile, so that what it compiled is used again.
func build(ctx context.Context, dir, path, pkg, ldflags string) error {
	c := exec.CommandContext(ctx, "go", "build", "-ldflags", strings.TrimSpace("-s -w "+ldflags), "-o", path, pkg)
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Use has the server, which is down, started from another oc from now on, and
// called through it.
func (s *Server) Use(binary string) { s.binary = binary }
