// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

// Small is enough for a shell, Python and the usual tools: packages that nearly
// every Debian host has installed.
func Small() []string {
	return []string{
		"base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "gzip",
		"hostname", "libc-bin", "mawk", "ncurses-base", "procps", "python3", "sed", "tar", "util-linux",
	}
}

// BuildHost makes a tree of packages that are installed on this host, with what
// they depend on, by copying their files. That takes seconds and no network.
// The host must be a Debian system; a package that is not installed is a fault
// of kind Unavailable. The tree has no package database, and no files that the
// packages' scripts made, except compiled Python and awk.
func (b *Builder) BuildHost(ctx context.Context, packages []string, progress Progress) (Tree, error) {
	if err := checkPackages(packages); err != nil {
		return Tree{}, err
	}
	s, err := b.stageTree()
	if err != nil {
		return Tree{}, err
	}
	defer s.close()
	progress.say("reading the host's packages")
	status, err := output(ctx, hostLimit, "dpkg-query", "-W", "-f", packageFormat)
	if err != nil {
		return Tree{}, err
	}
	all, err := closure(parsePackages(status), packages)
	if err != nil {
		return Tree{}, err
	}
	list, err := output(ctx, hostLimit, "dpkg-query", append([]string{"-L"}, all...)...)
	if err != nil {
		return Tree{}, err
	}
	progress.say("copying %d packages", len(all))
	if err := copyHost(ctx, s.path("new/tree"), strings.Split(list, "\n")); err != nil {
		return Tree{}, fmt.Errorf("copy the host's packages: %w", noSpace(err))
	}
	return b.publish(ctx, s, progress)
}

// hostLimit bounds what is read from dpkg-query, in bytes.
const hostLimit = 256 << 20

// packageFormat makes dpkg-query print what parsePackages reads.
const packageFormat = "${db:Status-Abbrev}\t${Architecture}\t${Package}\t${binary:Package}\t${Pre-Depends}, ${Depends}\t${Provides}\n"

// hostPackage is an installed package.
type hostPackage struct {
	id      string   // what dpkg-query calls it, with the architecture if that is needed
	depends []string // each one a list of alternatives
}

// parsePackages gives the installed packages by name, and by the names that
// they provide.
func parsePackages(status string) map[string]hostPackage {
	installed := map[string]hostPackage{}
	var provided [][2]string
	for line := range strings.Lines(status) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(f) != 6 || !strings.HasPrefix(f[0], "ii") || f[1] != "amd64" && f[1] != "all" {
			continue
		}
		name := f[2]
		installed[name] = hostPackage{id: f[3], depends: strings.Split(f[4], ",")}
		for p := range strings.SplitSeq(f[5], ",") {
			provided = append(provided, [2]string{bareName(p), name})
		}
	}
	for _, p := range provided {
		if _, ok := installed[p[0]]; !ok && p[0] != "" {
			installed[p[0]] = installed[p[1]]
		}
	}
	return installed
}

// bareName takes version and architecture from a dependency such as
// "libc6:any (>= 2.34)".
func bareName(dep string) string {
	dep, _, _ = strings.Cut(dep, "(")
	dep, _, _ = strings.Cut(dep, ":")
	return strings.TrimSpace(dep)
}

// closure gives the ids of packages with all that they depend on, sorted.
func closure(installed map[string]hostPackage, names []string) ([]string, error) {
	var ids []string
	seen := map[string]bool{}
	todo := slices.Clone(names)
	for len(todo) > 0 {
		dep := todo[0]
		todo = todo[1:]
		if strings.TrimSpace(dep) == "" {
			continue
		}
		var found *hostPackage
		for alternative := range strings.SplitSeq(dep, "|") {
			if p, ok := installed[bareName(alternative)]; ok {
				found = &p
				break
			}
		}
		if found == nil {
			return nil, fault.New(fault.Unavailable, "the package %s is not installed on this host", strings.TrimSpace(dep)).
				WithHint("apt-get install %s", bareName(dep))
		}
		if !seen[found.id] {
			seen[found.id] = true
			ids = append(ids, found.id)
			todo = append(todo, found.depends...)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// copyHost copies the listed files of the host into a tree. Lines that are not
// paths are remarks of dpkg-query.
func copyHost(ctx context.Context, dir string, paths []string) error {
	root, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// Where the host has /bin as a link to /usr/bin, packages still name /bin.
	for _, p := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		if target, err := os.Readlink(p); err == nil {
			if err := root.MkdirAll(path.Join("/", target), 0o755); err != nil {
				return err
			}
			if err := root.Symlink(target, p); err != nil {
				return err
			}
		}
	}
	paths = append(paths, "/usr/bin/awk", "/etc/alternatives/awk")
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !strings.HasPrefix(p, "/") || p == "/." || skipHost(p) {
			continue
		}
		if err := copyName(root, p); err != nil {
			return err
		}
		if strings.HasSuffix(p, ".py") {
			if err := copyCompiled(root, p); err != nil {
				return err
			}
		}
	}
	for _, account := range []string{"passwd", "group"} {
		data, err := os.ReadFile("/usr/share/base-passwd/" + account + ".master")
		if err != nil {
			continue // base-passwd was not asked for
		}
		if err := root.WriteFile("etc/"+account, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// skipHost tells what is left out, as in a tree of Debian packages, and what
// would tell about this host.
func skipHost(p string) bool {
	for _, dir := range []string{"/usr/share/man/", "/usr/share/info/", "/usr/share/locale/", "/usr/share/lintian/", "/etc/apt/", "/var/"} {
		if strings.HasPrefix(p, dir) {
			return true
		}
	}
	return strings.HasPrefix(p, "/usr/share/doc/") && path.Base(p) != "copyright"
}

// copyCompiled copies the compiled forms of a Python source file.
func copyCompiled(root *rootfs.Root, p string) error {
	dir, base := path.Split(p)
	compiled, err := filepath.Glob(dir + "__pycache__/" + strings.TrimSuffix(base, ".py") + ".cpython-*.pyc")
	if err != nil {
		return err
	}
	for _, c := range compiled {
		if err := copyName(root, c); err != nil {
			return err
		}
	}
	return nil
}

// copyName copies one file, link or directory of the host, without what is in
// it. What is not there (packages list what the administrator may remove), is
// there already, or has another type is passed over.
func copyName(root *rootfs.Root, p string) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil || root.Exists(p) {
		return nil
	}
	if err := root.MkdirAll(path.Dir(p), 0o755); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := root.Mkdir(p, st.Mode&0o7777); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(p)
		if err != nil {
			return err
		}
		return root.Symlink(target, p)
	case unix.S_IFREG:
		if err := copyFile(root, p); err != nil {
			return err
		}
	default:
		return nil
	}
	if err := root.Lchown(p, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := root.Chmod(p, st.Mode&0o7777); err != nil {
		return err
	}
	// Python compares times of modification.
	return root.Lchtimes(p, time.Unix(st.Mtim.Unix()))
}

func copyFile(root *rootfs.Root, p string) error {
	in, err := os.Open(p)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.Create(p, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
