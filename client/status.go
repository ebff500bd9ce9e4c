// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"strings"
)

// Health answers the health checks, which need no API key.
type Health struct {
	Status  string `json:"status" doc:"ok"`
	Version string `json:"version,omitempty"`
}

// Counts says how much a caller's org has.
type Counts struct {
	Sandboxes   int `json:"sandboxes" doc:"Running sandboxes"`
	Checkpoints int `json:"checkpoints"`
	Templates   int `json:"templates"`
}

// Status says what the server is.
type Status struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	APIURL  string `json:"apiUrl"`
	DataDir string `json:"dataDir"`
	Counts  Counts `json:"counts"`
	Pool    Pool   `json:"pool"`
}

// Pool says how the pool of prepared engine processes does since the server
// started.
type Pool struct {
	Hits   int `json:"hits" doc:"Engines that were there when a sandbox needed one"`
	Misses int `json:"misses" doc:"Engines that were not"`
	Ready  int `json:"ready" doc:"Engines that are there now"`
}

// WhoAmI says who an API key belongs to.
type WhoAmI struct {
	OrgID   string `json:"org_id"`
	OrgName string `json:"org_name"`
	UserID  string `json:"user_id"`
	Email   string `json:"email"`
}

// Health asks whether the server is up. It needs no API key.
func (c *Client) Health(ctx context.Context) (Health, error) {
	root := *c
	root.base = strings.TrimSuffix(c.base, "/api")
	root.key = ""
	var h Health
	return h, root.call(ctx, "GET", "/health", nil, &h)
}

// Status asks what the server is and how much it holds.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, "GET", "/status", nil, &s)
}

// WhoAmI asks who the API key belongs to.
func (c *Client) WhoAmI(ctx context.Context) (WhoAmI, error) {
	var w WhoAmI
	return w, c.call(ctx, "GET", "/whoami", nil, &w)
}
