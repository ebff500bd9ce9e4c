// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// sandboxUser is who commands run as, and whom files belong to, in a template
// that has this user.
const sandboxUser = "sandbox"

// maxDatabase bounds how much of /etc/passwd and /etc/group is read.
const maxDatabase = 1 << 20

// account is a user of the sandbox.
type account struct {
	name     string
	uid, gid uint32
	home     string // as this process sees it
	groups   []uint32
}

// lookupUser finds a user by name or uid; "" is the default user.
func (a *Agent) lookupUser(who string) (account, error) {
	if who == "" {
		if u, ok := a.findUser(sandboxUser); ok {
			return u, nil
		}
		who = "root"
	}
	if u, ok := a.findUser(who); ok {
		return u, nil
	}
	if uid, err := strconv.ParseUint(who, 10, 32); err == nil {
		return account{name: who, uid: uint32(uid), gid: uint32(uid), home: a.cfg.Root}, nil
	}
	if who == "root" { // also in a root file system without a user database
		return account{name: "root", home: a.inRoot("/root")}, nil
	}
	return account{}, failf(wire.Invalid, "the sandbox has no user %q", who)
}

// findUser searches the user database for a name or uid.
func (a *Agent) findUser(who string) (u account, found bool) {
	a.database("/etc/passwd", func(f []string) bool {
		if len(f) < 7 || (f[0] != who && f[2] != who) {
			return true
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			return true
		}
		u = account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: a.inRoot(f[5])}
		found = true
		return false
	})
	if found {
		u.groups = a.groupsOf(u)
	}
	return u, found
}

func (a *Agent) groupsOf(u account) (gids []uint32) {
	a.database("/etc/group", func(f []string) bool {
		if len(f) < 4 {
			return true
		}
		for m := range strings.SplitSeq(f[3], ",") {
			if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && m == u.name && len(gids) < 256 {
				gids = append(gids, uint32(gid))
				break
			}
		}
		return true
	})
	return gids
}

// database calls f with the fields of each line until it gives false. A file
// that is missing is empty.
func (a *Agent) database(path string, f func(fields []string) bool) {
	file, err := os.Open(a.inRoot(path))
	if err != nil {
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxDatabase))
	for lines.Scan() {
		if !f(strings.Split(lines.Text(), ":")) {
			return
		}
	}
}

// mayEnter tells whether the modes of a directory and of those above it let the
// user in. It is asked only why a start was refused: the kernel decides.
func (u account) mayEnter(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	for ; err == nil; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err = unix.Stat(dir, &st); err != nil {
			break
		}
		bit := uint32(0o001)
		switch {
		case u.uid == 0:
			bit = 0o111
		case st.Uid == u.uid:
			bit = 0o100
		case st.Gid == u.gid || slices.Contains(u.groups, st.Gid):
			bit = 0o010
		}
		if st.Mode&bit == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
	}
	return false
}
