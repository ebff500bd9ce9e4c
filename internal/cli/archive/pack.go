// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// Pack writes the file or directory source as a tar archive. The member of source
// itself is called name; with name "." the members of a directory are relative
// to it and the directory itself is not among them. A symbolic link given as
// source is followed, those below it are kept.
func Pack(ctx context.Context, w io.Writer, source, name string, notices Notices) (Stats, error) {
	source, err := filepath.EvalSymlinks(source)
	if err != nil {
		return Stats{}, err
	}
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), notices: notices}
	err = filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		member := path.Join(name, filepath.ToSlash(rel))
		if member == "." {
			if !d.IsDir() {
				return fmt.Errorf("%s is not a directory", source)
			}
			return nil
		}
		return p.add(file, member, d)
	})
	if err != nil {
		return p.stats, err
	}
	return p.stats, p.tw.Close()
}

// packer is a Pack under way.
type packer struct {
	ctx     context.Context
	tw      *tar.Writer
	notices Notices
	stats   Stats
}

// add writes one member.
func (p *packer) add(file, member string, d fs.DirEntry) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	defer func() { p.notices.progress(p.stats) }()
	switch {
	case d.Type().IsRegular():
		return p.file(file, member)
	case d.IsDir(), d.Type()&fs.ModeSymlink != 0:
		return p.plain(file, member, d)
	}
	p.notices.skip(file, "is a %s", kind(d.Type()))
	return nil
}

// plain writes a member without content.
func (p *packer) plain(file, member string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	var target string
	if !d.IsDir() {
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	return p.header(info, member, target)
}

// file writes a regular file.
func (p *packer) file(file, member string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s changed while it was read", file)
	}
	if err := p.header(info, member, ""); err != nil {
		return err
	}
	n, err := io.CopyN(p.tw, f, info.Size())
	p.stats.Bytes += n
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s became shorter while it was read", file)
	}
	if err != nil {
		return err
	}
	p.stats.Files++
	return nil
}

// header writes the header of a member. Owners stay here.
func (p *packer) header(info fs.FileInfo, member, target string) error {
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name = member
	if info.IsDir() {
		h.Name += "/"
	}
	h.Mode &= int64(fs.ModePerm)
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	return p.tw.WriteHeader(h)
}

// kind names a type of file that is not copied.
func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}
