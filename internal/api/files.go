// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/agent/wire"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/sandbox"
)

const (
	octets  = "application/octet-stream"
	tarType = "application/x-tar"
)

func (s *Server) fileRoutes() {
	const files = "/api/sandboxes/{id}/files"
	s.raw("GET "+files, "Read a file", http.StatusOK, s.readFile)
	s.raw("PUT "+files, "Write a file; mode=0755 sets its permissions", http.StatusNoContent, s.writeFile)
	s.raw("GET "+files+"/tar", "Read a file or directory as a tar archive", http.StatusOK, s.packFiles)
	s.raw("PUT "+files+"/tar", "Unpack a tar archive into a directory", http.StatusNoContent, s.unpackFiles)
	typed(s, "GET "+files+"/list", "The entries of a directory", http.StatusOK, s.listFiles)
	empty(s, "POST "+files+"/mkdir", "Make a directory and its parents", s.makeDir)
	empty(s, "DELETE "+files, "Remove a file or a directory with all that is in it", s.removeFile)
	s.signedRoutes(files)
}

// pathInput is the input of an operation on a file. A relative path counts from
// the home of the sandbox's user.
type pathInput struct {
	ID   string `path:"id" doc:"Sandbox id"`
	Path string `query:"path"`
}

// checkPath refuses what is no path.
func checkPath(path string) error {
	if path == "" {
		return fault.New(fault.Invalid, "path is required")
	}
	if len(path) > 4096 || slices.Contains([]byte(path), 0) {
		return fault.New(fault.Invalid, "path is longer than 4096 bytes or has a zero byte")
	}
	if !utf8.ValidString(path) {
		return fault.New(fault.Invalid, "path %q is not valid UTF-8", path)
	}
	return nil
}

func (s *Server) listFiles(ctx context.Context, in *pathInput) ([]client.FileInfo, error) {
	path := first(in.Path, "/")
	if err := checkPath(path); err != nil {
		return nil, err
	}
	var infos []wire.FileInfo
	err := s.withAgent(ctx, in.ID, func(ctx context.Context, lease *sandbox.Lease) (err error) {
		infos, err = lease.Agent.List(ctx, path)
		return err
	})
	slices.SortFunc(infos, func(a, b wire.FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	return each(infos, func(fi wire.FileInfo) client.FileInfo {
		return client.FileInfo{Name: fi.Name, IsDir: fi.Kind == wire.KindDir, Size: fi.Size, Path: fi.Path}
	}), err
}

func (s *Server) makeDir(ctx context.Context, in *pathInput) error {
	if err := checkPath(in.Path); err != nil {
		return err
	}
	return s.withAgent(ctx, in.ID, func(ctx context.Context, lease *sandbox.Lease) error {
		return lease.Agent.Mkdir(ctx, in.Path)
	})
}

func (s *Server) removeFile(ctx context.Context, in *pathInput) error {
	if err := checkPath(in.Path); err != nil {
		return err
	}
	return s.withAgent(ctx, in.ID, func(ctx context.Context, lease *sandbox.Lease) error {
		return lease.Agent.Remove(ctx, in.Path)
	})
}

func (s *Server) readFile(w http.ResponseWriter, r *http.Request) {
	s.sendFile(w, r, orgOf(r.Context()), r.URL.Query().Get("path"))
}

func (s *Server) writeFile(w http.ResponseWriter, r *http.Request) {
	var mode fs.FileMode
	if v := r.URL.Query().Get("mode"); v != "" {
		m, err := strconv.ParseUint(v, 8, 32)
		if err != nil || m > 0o777 {
			s.writeError(w, r, fault.New(fault.Invalid, "mode must be octal permission bits such as 0644, not %q", v))
			return
		}
		mode = fs.FileMode(m)
	}
	s.receiveFile(w, r, orgOf(r.Context()), r.URL.Query().Get("path"), mode)
}

func (s *Server) packFiles(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Query().Get("path")
	s.send(w, r, orgOf(r.Context()), path, tarType, func(ctx context.Context, lease *sandbox.Lease) (io.ReadCloser, error) {
		return lease.Agent.Pack(ctx, path)
	})
}

func (s *Server) unpackFiles(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Query().Get("path")
	s.receive(w, r, orgOf(r.Context()), path, func(ctx context.Context, lease *sandbox.Lease, body io.Reader) error {
		return lease.Agent.Unpack(ctx, path, body)
	})
}

// sendFile answers with a file of one of the org's sandboxes.
func (s *Server) sendFile(w http.ResponseWriter, r *http.Request, orgID, path string) {
	s.send(w, r, orgID, path, octets, func(ctx context.Context, lease *sandbox.Lease) (io.ReadCloser, error) {
		rc, _, err := lease.Agent.ReadFile(ctx, path)
		return rc, err
	})
}

// receiveFile makes a file of the body.
func (s *Server) receiveFile(w http.ResponseWriter, r *http.Request, orgID, path string, mode fs.FileMode) {
	s.receive(w, r, orgID, path, func(ctx context.Context, lease *sandbox.Lease, body io.Reader) error {
		return lease.Agent.WriteFile(ctx, path, mode, body)
	})
}

// send streams what open opens. A restore of the sandbox meanwhile cuts it: half
// a file of each of two histories is no file.
func (s *Server) send(w http.ResponseWriter, r *http.Request, orgID, path, contentType string,
	open func(context.Context, *sandbox.Lease) (io.ReadCloser, error)) {
	s.withLease(w, r, orgID, path, func(ctx context.Context, lease *sandbox.Lease) error {
		src, err := open(ctx, lease)
		if err != nil {
			return err
		}
		defer src.Close()
		s.download(w, r, contentType, src)
		return nil
	})
}

// receive gives store the body, and answers 204.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, orgID, path string,
	store func(context.Context, *sandbox.Lease, io.Reader) error) {
	s.withLease(w, r, orgID, path, func(ctx context.Context, lease *sandbox.Lease) error {
		body := s.upload(w, r, maxTransfer)
		defer body.finish()
		if err := store(ctx, lease, body); err != nil {
			return body.explain(err)
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
}

// withLease runs a transfer on the present generation of a sandbox, once.
func (s *Server) withLease(w http.ResponseWriter, r *http.Request, orgID, path string, f func(context.Context, *sandbox.Lease) error) {
	if err := checkPath(path); err != nil {
		s.writeError(w, r, err)
		return
	}
	lease, err := s.cfg.Sandboxes.Acquire(r.Context(), orgID, r.PathValue("id"))
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	defer lease.Release()
	ctx, cancel := whileCurrent(r.Context(), lease)
	defer cancel()
	if err := f(ctx, lease); err != nil {
		s.writeError(w, r, err)
	}
}
