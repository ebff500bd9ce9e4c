// SPDX-License-Identifier: Apache-2.0

package agentclient

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/fault"
)

// Bounds of a list that the agent sends.
const (
	maxRows     = 250_000
	maxRowBytes = wire.MaxPayload
)

// Stat describes what a path leads to. Relative paths begin at the home of the
// sandbox's default user, here and in all that follows.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	var fi FileInfo
	if err := c.unary(ctx, wire.OpFileStat, wire.PathArgs{Path: path}, &fi); err != nil {
		return FileInfo{}, err
	}
	return fi, nil
}

// List gives the entries of a directory, in no order.
func (c *Client) List(ctx context.Context, path string) ([]FileInfo, error) {
	return rows(ctx, c, wire.OpFileList, wire.PathArgs{Path: path}, func(fi *FileInfo) error {
		if n := fi.Name; n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
			return fault.New(fault.Internal, "the sandbox's agent listed a file that cannot be")
		}
		return nil
	})
}

// Mkdir makes a directory and what is missing above it.
func (c *Client) Mkdir(ctx context.Context, path string) error {
	return c.unary(ctx, wire.OpFileMkdir, wire.PathArgs{Path: path}, nil)
}

// Remove removes a file, or a directory with all that is in it; what is not
// there needs no removing.
func (c *Client) Remove(ctx context.Context, path string) error {
	return c.unary(ctx, wire.OpFileRemove, wire.PathArgs{Path: path}, nil)
}

// ReadFile streams a regular file. Its size may change while it is read. The
// reader fails when ctx ends and must be closed.
func (c *Client) ReadFile(ctx context.Context, path string) (io.ReadCloser, FileInfo, error) {
	return c.download(ctx, wire.OpFileRead, path)
}

// Pack streams a file or directory as a tar archive. A directory is "." and
// what is in it; a file is one entry with its base name. The reader fails when
// ctx ends and must be closed.
func (c *Client) Pack(ctx context.Context, path string) (io.ReadCloser, error) {
	r, _, err := c.download(ctx, wire.OpFilePack, path)
	return r, err
}

func (c *Client) download(ctx context.Context, op wire.Op, path string) (io.ReadCloser, FileInfo, error) {
	k, err := c.begin(ctx, op, wire.Data, wire.PathArgs{Path: path})
	if err != nil {
		return nil, FileInfo{}, err
	}
	var fi FileInfo
	if err := k.accept(ctx, &fi); err != nil {
		return nil, FileInfo{}, err
	}
	return &reader{ctx: ctx, k: k}, fi, nil
}

// WriteFile replaces or makes a file, atomically, and what directories are
// missing above it. Mode 0 is that of the file it replaces, or 0644.
func (c *Client) WriteFile(ctx context.Context, path string, mode fs.FileMode, r io.Reader) error {
	args := wire.WriteArgs{Path: path}
	if mode != 0 {
		perm := uint32(mode.Perm())
		args.Mode = &perm
	}
	return c.upload(ctx, wire.OpFileWrite, args, r)
}

// Unpack puts the files of a tar archive into a directory, which is made if it
// is missing. Nothing is written outside the directory.
func (c *Client) Unpack(ctx context.Context, dir string, r io.Reader) error {
	return c.upload(ctx, wire.OpFileUnpack, wire.PathArgs{Path: dir}, r)
}

func (c *Client) upload(ctx context.Context, op wire.Op, args any, r io.Reader) error {
	k, err := c.begin(ctx, op, 0, args)
	if err != nil {
		return err
	}
	if err := k.upload(ctx, 0, r); err != nil {
		c.giveUp(k)
		return err
	}
	return k.finished(ctx, nil)
}

// SetIdentity makes the sandbox a machine of its own. To repeat it is harmless.
func (c *Client) SetIdentity(ctx context.Context, id Identity) error {
	return c.unary(ctx, wire.OpIdentitySet, id, nil)
}

// Probe has the agent prove that it runs in a sandbox that it can write a file
// in.
func (c *Client) Probe(ctx context.Context) error {
	return c.unary(ctx, wire.OpProbe, struct{}{}, nil)
}

// reader reads the Data of a call as one stream.
type reader struct {
	ctx  context.Context
	k    *call
	off  int64
	rest []byte
}

func (r *reader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		it, err := r.k.next(r.ctx)
		if err != nil {
			return 0, err
		}
		if it.off != r.off {
			r.Close()
			return 0, r.k.broken("its data is not in order")
		}
		r.rest = it.b
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.off += int64(n)
	return n, nil
}

func (r *reader) Close() error {
	r.k.c.giveUp(r.k)
	return nil
}

// rows makes a call whose result is a stream of lines of JSON.
func rows[T any](ctx context.Context, c *Client, op wire.Op, args any, check func(*T) error) ([]T, error) {
	k, err := c.begin(ctx, op, wire.Data, args)
	if err != nil {
		return nil, err
	}
	if err := k.accept(ctx, &struct{}{}); err != nil {
		return nil, err
	}
	r := &reader{ctx: ctx, k: k}
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxRowBytes)
	all := []T{}
	for lines.Scan() {
		var row T
		if err := wire.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, k.broken(err.Error())
		}
		if err := check(&row); err != nil {
			return nil, err
		}
		if all = append(all, row); len(all) > maxRows {
			return nil, fault.New(fault.Exhausted, "more than %d entries", maxRows)
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, k.broken("a row is too long")
	} else if err != nil {
		return nil, err
	}
	return all, nil
}
