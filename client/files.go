// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"io"
	"net/url"
	"strconv"
	"time"
)

// FileInfo is an entry of a directory in a sandbox.
type FileInfo struct {
	Name  string `json:"name"`
	IsDir bool   `json:"isDir"`
	Size  int64  `json:"size" doc:"Bytes"`
	Path  string `json:"path" doc:"Absolute"`
}

// SignedURLRequest asks for a URL that works without an API key.
type SignedURLRequest struct {
	Path      string `json:"path"`
	ExpiresIn int    `json:"expiresIn,omitempty" doc:"Seconds, 1 to 86400; default 3600"`
}

// SignedURL works without an API key until it expires.
type SignedURL struct {
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// filesPath is the address of a files call. A relative path in the sandbox
// counts from the user's home.
func filesPath(sandboxID, verb, file string) string {
	p := path("sandboxes", sandboxID, "files")
	if verb != "" {
		p += "/" + verb
	}
	return p + "?path=" + url.QueryEscape(file)
}

// ReadFile opens a file of a sandbox for reading. The reader must be closed; it
// fails with io.ErrUnexpectedEOF if the content was cut short.
func (c *Client) ReadFile(ctx context.Context, sandboxID, file string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, "GET", filesPath(sandboxID, "", file), nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// WriteFile makes or replaces a file in a sandbox, and its parent directories.
// Mode holds the permission bits; 0 means 0644.
func (c *Client) WriteFile(ctx context.Context, sandboxID, file string, mode uint32, content io.Reader) error {
	p := filesPath(sandboxID, "", file)
	if mode != 0 {
		p += "&mode=" + strconv.FormatUint(uint64(mode), 8)
	}
	return c.upload(ctx, p, "application/octet-stream", content)
}

// ListFiles gives the entries of a directory.
func (c *Client) ListFiles(ctx context.Context, sandboxID, dir string) ([]FileInfo, error) {
	var out []FileInfo
	return out, c.call(ctx, "GET", filesPath(sandboxID, "list", dir), nil, &out)
}

// Mkdir makes a directory and its parents.
func (c *Client) Mkdir(ctx context.Context, sandboxID, dir string) error {
	return c.call(ctx, "POST", filesPath(sandboxID, "mkdir", dir), nil, nil)
}

// RemoveFile removes a file, or a directory with all that is in it. A missing
// one is no error.
func (c *Client) RemoveFile(ctx context.Context, sandboxID, file string) error {
	return c.call(ctx, "DELETE", filesPath(sandboxID, "", file), nil, nil)
}

// PullTar streams a file or a directory of a sandbox as a tar archive: a
// directory is "." and what is in it, a file one member with its base name. The
// reader must be closed. What is in the archive is up to the sandbox: unpack it
// with care.
func (c *Client) PullTar(ctx context.Context, sandboxID, file string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, "GET", filesPath(sandboxID, "tar", file), nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// PushTar unpacks a tar archive into a directory of a sandbox, which is made if
// it is missing.
func (c *Client) PushTar(ctx context.Context, sandboxID, dir string, archive io.Reader) error {
	return c.upload(ctx, filesPath(sandboxID, "tar", dir), "application/x-tar", archive)
}

// upload streams a body.
func (c *Client) upload(ctx context.Context, p, contentType string, body io.Reader) error {
	// Wrapping keeps net/http from closing what the caller owns.
	resp, err := c.send(ctx, "PUT", p, header{"Content-Type": contentType}, io.NopCloser(body))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// DownloadURL makes a URL from which the file can be read without an API key.
func (c *Client) DownloadURL(ctx context.Context, sandboxID string, req SignedURLRequest) (SignedURL, error) {
	var out SignedURL
	return out, c.call(ctx, "POST", path("sandboxes", sandboxID, "files", "download-url"), req, &out)
}

// UploadURL makes a URL to which the file can be written without an API key.
func (c *Client) UploadURL(ctx context.Context, sandboxID string, req SignedURLRequest) (SignedURL, error) {
	var out SignedURL
	return out, c.call(ctx, "POST", path("sandboxes", sandboxID, "files", "upload-url"), req, &out)
}
