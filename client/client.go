// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxJSON bounds a JSON answer.
const maxJSON = 64 << 20

// Client calls one server with one API key. It may be used by many goroutines.
type Client struct {
	base string // ends in "/api"
	key  string
	http *http.Client
}

// Option changes how a Client works.
type Option func(*Client)

// WithHTTPClient makes the Client use h. It must not have a Timeout, which would
// also end streams.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// New makes a client of the server at baseURL, for instance
// "http://127.0.0.1:7778"; a trailing slash or "/api" changes nothing. With an
// empty apiKey no key is sent.
func New(baseURL, apiKey string, opts ...Option) (*Client, error) {
	base := strings.TrimRight(baseURL, "/")
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("invalid API URL %q: want http://HOST[:PORT] or https://HOST[:PORT]", baseURL)
	}
	if !strings.HasSuffix(base, "/api") {
		base += "/api"
	}
	c := &Client{base: base, key: apiKey, http: &http.Client{
		// A redirect would lose the method or carry the key elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, o := range opts {
		o(c)
	}
	return c, nil
}

// BaseURL is the address that calls go to; it ends in "/api".
func (c *Client) BaseURL() string { return c.base }

// path joins escaped segments to a path below the base URL.
func path(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// header is what a call sends besides the key.
type header map[string]string

// send makes a request and gives the answer, which is a success; its body must
// be closed.
func (c *Client) send(ctx context.Context, method, path string, h header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	for k, v := range h {
		req.Header.Set(k, v)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, errorFrom(resp)
	}
	return resp, nil
}

// unreachable says which server did not answer; what net/http says repeats the
// method and the whole URL, which may hold a user's path.
func (c *Client) unreachable(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("cannot reach %s: %w", strings.TrimSuffix(c.base, "/api"), err)
}

// call makes a JSON request and decodes the answer into out. A nil in sends no
// body, a nil out ignores the answer.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	h := header{"Accept": "application/json"}
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(data)
		h["Content-Type"] = "application/json"
	}
	resp, err := c.send(ctx, method, path, h, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxJSON))
		return err
	}
	return decode(resp.Body, out)
}

// decode reads one JSON answer.
func decode(r io.Reader, out any) error {
	if err := json.NewDecoder(io.LimitReader(r, maxJSON)).Decode(out); err != nil {
		return fmt.Errorf("unreadable answer of the server: %w", err)
	}
	return nil
}
