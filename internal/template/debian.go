// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

// Spec is a root file system made of Debian packages.
type Spec struct {
	Suite    string   // release, such as "bookworm"
	Packages []string // beside the essential ones and apt, and what they depend on
}

// Base is what the default template is made of.
func Base() Spec {
	return Spec{
		Suite: "bookworm",
		Packages: []string{
			"bash", "ca-certificates", "coreutils", "curl", "git", "jq",
			"nodejs", "procps", "python3", "sudo",
		},
	}
}

var (
	suitePattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[a-z][a-z0-9.-]{0,63}$`)
	})
	packagePattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{0,127}$`)
	})
)

func (s Spec) check() error {
	if !suitePattern().MatchString(s.Suite) {
		return fault.New(fault.Invalid, "%.80q is not a Debian release", s.Suite)
	}
	return checkPackages(s.Packages)
}

func checkPackages(names []string) error {
	if len(names) > 1000 {
		return fault.New(fault.Invalid, "%d packages are too many for one template", len(names))
	}
	for _, p := range names {
		if !packagePattern().MatchString(p) {
			return fault.New(fault.Invalid, "%.80q is not a package name", p)
		}
	}
	return nil
}

// leftOut is what packages bring that no program needs, as patterns of dpkg;
// the copyright files stay. The names of directories stay, too, without content.
func leftOut() []string {
	return []string{
		"path-exclude=/usr/share/man/*",
		"path-exclude=/usr/share/info/*",
		"path-exclude=/usr/share/locale/*",
		"path-exclude=/usr/share/lintian/*",
		"path-exclude=/usr/share/doc/*",
		"path-include=/usr/share/doc/*/copyright",
	}
}

// BuildDebian makes a tree of Debian packages with mmdebstrap. The packages
// come from where this host's apt gets those of the same release, through the
// same proxy; if the host has no source for the release, from Debian's own
// mirrors.
func (b *Builder) BuildDebian(ctx context.Context, spec Spec, progress Progress) (Tree, error) {
	if err := spec.check(); err != nil {
		return Tree{}, err
	}
	s, err := b.stageTree()
	if err != nil {
		return Tree{}, err
	}
	defer s.close()
	apt, err := hostApt(ctx, spec.Suite)
	if err != nil {
		return Tree{}, err
	}
	// In a file, because a proxy's password must not be seen in the list of
	// processes.
	if err := os.WriteFile(s.path("apt.conf"), []byte(apt.options), 0o600); err != nil {
		return Tree{}, noSpace(err)
	}
	t := tool{name: "mmdebstrap", pkg: "mmdebstrap", alone: true, env: apt.env, args: []string{
		"--mode=root", "--variant=apt", "--format=directory",
		"--aptopt=" + s.path("apt.conf"),
		"--include=" + strings.Join(spec.Packages, ","),
	}}
	for _, o := range leftOut() {
		t.args = append(t.args, "--dpkgopt="+o)
	}
	t.args = append(t.args, spec.Suite, s.path("new/tree"))
	t.args = append(t.args, apt.sources...)
	say := func(line string) {
		if text, ok := strings.CutPrefix(line, "I: "); ok {
			progress.say("%s", strings.TrimRight(text, "."))
			return
		}
		b.log.Debug("mmdebstrap", "line", line)
	}
	if err := t.run(ctx, say); err != nil {
		return Tree{}, fmt.Errorf("build from Debian packages: %w", noSpace(err))
	}
	if err := cleanDebian(s.path("new/tree")); err != nil {
		return Tree{}, fmt.Errorf("clean the root file system: %w", err)
	}
	return b.publish(ctx, s, progress)
}

// buildOnly is what a build leaves in a tree that says more about the build, or
// this host, than about the tree.
func buildOnly() []string {
	return []string{
		"etc/apt/apt.conf.d/99mmdebstrap", // this host's proxy
		"etc/.pwd.lock", "etc/group-", "etc/passwd-", "etc/shadow-", "etc/gshadow-",
		"var/log/alternatives.log", "var/log/apt", "var/log/bootstrap.log", "var/log/dpkg.log",
		"var/cache/ldconfig/aux-cache", "var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old",
		"var/lib/dpkg/available-old", "var/lib/dpkg/diversions-old", "var/lib/dpkg/statoverride-old",
		"var/lib/dpkg/status-old", "var/lib/dbus/machine-id",
	}
}

// cleanDebian removes what is buildOnly and passwords in the addresses of
// package sources.
func cleanDebian(dir string) error {
	root, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range buildOnly() {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	const parts = "etc/apt/sources.list.d"
	names, err := root.ReadDir(parts)
	if err != nil {
		return err
	}
	for i, n := range names {
		names[i] = path.Join(parts, n)
	}
	slices.Sort(names)
	for _, name := range append(names, "etc/apt/sources.list") {
		if !root.Exists(name) {
			continue
		}
		old, err := root.ReadFile(name, accountLimit)
		if err != nil {
			return err
		}
		if clean := withoutPasswords(string(old)); clean != string(old) {
			if err := root.WriteFile(name, []byte(clean), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

var loginInURL = regexp.MustCompile(`://[^/@\s]*@`)

func withoutPasswords(text string) string { return loginInURL.ReplaceAllString(text, "://") }
