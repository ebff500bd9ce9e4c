// SPDX-License-Identifier: Apache-2.0

package template

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

// The user that sandboxes run commands as, and its directories.
const (
	userName  = "sandbox"
	userID    = 1000 // the first free one from here on
	userHome  = "home/sandbox"
	workspace = "workspace" // a link to userHome
)

// reservedDir is the name at the root of a tree that belongs to the agent.
const reservedDir = ".oc"

// accountLimit bounds the files of accounts that are read, in bytes.
const accountLimit = 4 << 20

// complete gives a tree what every sandbox needs, whatever it was made from:
//
//   - the mount points /proc, /sys, /dev, /run and /tmp, and an empty /dev;
//   - the files that carry an identity, /etc/hostname, /etc/machine-id and
//     /etc/resolv.conf, emptied (the agent fills them in), and /etc/hosts if it
//     has none;
//   - the user sandbox, if it has none, with uid 1000 or the next that is free,
//     its home directory, /workspace as a link to it and, where sudo is
//     installed, the right to use it without a password.
//
// What the tree has at /.oc is removed.
func complete(dir string) error {
	root, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, step := range []func(*rootfs.Root) error{mountPoints, identityFiles, addUser} {
		if err := step(root); err != nil {
			return notRootfs(err)
		}
	}
	return nil
}

// notRootfs makes a tree that is not shaped like a root file system, such as one
// whose /etc is a file, a fault of its maker.
func notRootfs(err error) error {
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return fault.Wrap(fault.Invalid, err, "this is not a root file system")
	}
	return fmt.Errorf("complete the root file system: %w", err)
}

func mountPoints(root *rootfs.Root) error {
	// The engine mounts its own /dev; nodes made on the host mean nothing there.
	for _, name := range []string{reservedDir, "dev"} {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	for _, name := range []string{"proc", "sys", "dev", "run", "etc", "home", "root"} {
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"tmp", "var/tmp"} {
		if root.Exists(name) {
			continue
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		if err := root.Chmod(name, 0o1777); err != nil {
			return err
		}
	}
	return nil
}

func identityFiles(root *rootfs.Root) error {
	for _, name := range []string{"hostname", "machine-id", "resolv.conf"} {
		if err := root.WriteFile("etc/"+name, nil, 0o644); err != nil {
			return err
		}
	}
	if old, err := root.ReadFile("etc/hosts", accountLimit); err == nil && len(old) > 0 {
		return nil
	}
	return root.WriteFile("etc/hosts", []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"), 0o644)
}

// addUser adds the user sandbox to the account files.
func addUser(root *rootfs.Root) error {
	passwd, err := accounts(root, "etc/passwd")
	if err != nil {
		return err
	}
	if passwd.has(userName) {
		return nil
	}
	group, err := accounts(root, "etc/group")
	if err != nil {
		return err
	}
	if len(passwd.lines) == 0 {
		passwd.lines = []string{"root:x:0:0:root:/root:/bin/sh"}
	}
	if len(group.lines) == 0 {
		group.lines = []string{"root:x:0:"}
	}
	uid := passwd.freeID(userID)
	gid, ok := group.id(userName)
	if !ok {
		gid = group.freeID(uid)
		group.lines = append(group.lines, fmt.Sprintf("%s:x:%d:", userName, gid))
	}
	passwd.lines = append(passwd.lines, fmt.Sprintf("%s:x:%d:%d::/%s:%s", userName, uid, gid, userHome, shell(root)))
	for _, t := range []*accountFile{passwd, group} {
		if err := t.save(root, 0o644); err != nil {
			return err
		}
	}
	if err := addShadow(root); err != nil {
		return err
	}
	if err := addHome(root, uid, gid); err != nil {
		return err
	}
	return allowSudo(root)
}

// shell gives the user's shell: bash where there is one.
func shell(root *rootfs.Root) string {
	if f, err := root.OpenFile("bin/bash"); err == nil {
		f.Close()
		return "/bin/bash"
	}
	return "/bin/sh"
}

// addShadow adds the user, without a password, to /etc/shadow if that exists:
// sudo refuses users that are missing in it.
func addShadow(root *rootfs.Root) error {
	const name = "etc/shadow"
	st, err := root.Lstat(name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	shadow, err := accounts(root, name)
	if err != nil || shadow.has(userName) {
		return err
	}
	shadow.lines = append(shadow.lines, userName+":*:10957:0:99999:7:::")
	if err := shadow.save(root, st.Mode&0o777); err != nil {
		return err
	}
	return root.Lchown(name, int(st.Uid), int(st.Gid))
}

func addHome(root *rootfs.Root, uid, gid int) error {
	if !root.Exists(userHome) {
		if err := root.MkdirAll(userHome, 0o755); err != nil {
			return err
		}
		if err := root.Lchown(userHome, uid, gid); err != nil {
			return err
		}
	}
	if root.Exists(workspace) {
		return nil
	}
	return root.Symlink("/"+userHome, workspace)
}

func allowSudo(root *rootfs.Root) error {
	st, err := root.Lstat("etc/sudoers.d")
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return root.WriteFile("etc/sudoers.d/"+userName, []byte(userName+" ALL=(ALL:ALL) NOPASSWD:ALL\n"), 0o440)
}

// accountFile is /etc/passwd or one like it: a line per account, fields between
// colons, the name first. In passwd and group the third field is the id.
type accountFile struct {
	name  string
	lines []string
}

// accounts reads an account file; one that is not there is empty.
func accounts(root *rootfs.Root, name string) (*accountFile, error) {
	data, err := root.ReadFile(name, accountLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t := &accountFile{name: name}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			t.lines = append(t.lines, line)
		}
	}
	return t, nil
}

func (t *accountFile) save(root *rootfs.Root, mode uint32) error {
	if err := root.MkdirAll(path.Dir(t.name), 0o755); err != nil {
		return err
	}
	return root.WriteFile(t.name, []byte(strings.Join(t.lines, "\n")+"\n"), mode)
}

func (t *accountFile) has(name string) bool {
	for _, l := range t.lines {
		if strings.HasPrefix(l, name+":") {
			return true
		}
	}
	return false
}

// id gives the numeric id of a name.
func (t *accountFile) id(name string) (int, bool) {
	for _, l := range t.lines {
		if f := strings.Split(l, ":"); len(f) > 2 && f[0] == name {
			n, err := strconv.ParseUint(f[2], 10, 31)
			return int(n), err == nil
		}
	}
	return 0, false
}

// freeID gives the first id from the one wanted on that nobody has.
func (t *accountFile) freeID(want int) int {
	taken := map[int]bool{}
	for _, l := range t.lines {
		if f := strings.Split(l, ":"); len(f) > 2 {
			if n, err := strconv.Atoi(f[2]); err == nil {
				taken[n] = true
			}
		}
	}
	for n := want; n < math.MaxInt32; n++ {
		if !taken[n] {
			return n
		}
	}
	return want
}
