// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

// Names of whiteouts, from the image specification of the Open Container
// Initiative (layer.md, "Whiteouts").
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	reserved = ".wh..wh." // others of this prefix are a storage driver's own
)

// whiteout removes what lower layers have put at a place.
func (p *pass) whiteout(name string) error {
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if base == opaque {
		return p.hideLower(dir)
	}
	if strings.HasPrefix(base, reserved) {
		return nil
	}
	victim := strings.TrimPrefix(base, whiteout)
	if victim == "" || victim == "." || victim == ".." {
		return fault.New(fault.Invalid, "the archive has a whiteout without a name: %q", name)
	}
	return p.hide(path.Join(dir, victim))
}

// hide removes a name, or where this layer has written below it, all that is
// not the layer's.
func (p *pass) hide(name string) error {
	if p.own[name] {
		return p.hideLower(name)
	}
	if err := p.root.RemoveAll(name); err != nil {
		return fmt.Errorf("whiteout of %q: %w", name, err)
	}
	return nil
}

// hideLower removes what is below a directory and not this layer's.
func (p *pass) hideLower(dir string) error {
	st, err := p.root.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || notDir(err) || err == nil && st.Mode&typeMask != typeDir {
		return nil // nothing of that name to hide below
	}
	if err != nil {
		return err
	}
	names, err := p.root.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("whiteout of %q: %w", dir, err)
	}
	slices.Sort(names)
	for _, n := range names {
		if err := p.hide(path.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}

// mark notes a name, and the directories above it, as the layer's own.
func (p *pass) mark(name string) {
	for ; name != "." && !p.own[name]; name = path.Dir(name) {
		p.own[name] = true
	}
}

// paxXattr begins the records of a PAX header that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// xattrs sets the extended attributes that mean something in another machine.
func (p *pass) xattrs(name string, h *tar.Header) error {
	for record, value := range h.PAXRecords {
		key, ok := strings.CutPrefix(record, paxXattr)
		if !ok {
			continue
		}
		if key != "security.capability" && !strings.HasPrefix(key, "user.") {
			p.stats.Xattrs++
			continue
		}
		err := p.root.Setxattr(name, key, []byte(value))
		switch {
		case err == nil:
		case slices.ContainsFunc([]error{unix.ENOTSUP, unix.EPERM, unix.EINVAL, unix.ERANGE, unix.E2BIG, unix.ENOSPC},
			func(e error) bool { return errors.Is(err, e) }):
			// Not for this kind of file, or more than the file system holds.
			p.stats.Xattrs++
		default:
			return err
		}
	}
	return nil
}
