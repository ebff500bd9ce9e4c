// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"io"
	"time"
)

// Template is what a new sandbox starts from. Released clients know it as a
// snapshot, whose field names it has.
type Template struct {
	ID           string         `json:"id"`
	OrgID        string         `json:"orgId" doc:"Empty: visible to all"`
	Name         string         `json:"name"`
	Status       string         `json:"status" doc:"building, ready or failed"`
	ErrorMsg     string         `json:"errorMsg,omitempty" doc:"Why it failed"`
	ContentHash  string         `json:"contentHash" doc:"Hash of its files"`
	CheckpointID string         `json:"checkpointId,omitempty" doc:"Checkpoint of its booted state, if any"`
	Manifest     map[string]any `json:"manifest"`
	SizeBytes    int64          `json:"sizeBytes"`
	CreatedAt    time.Time      `json:"createdAt"`
	LastUsedAt   time.Time      `json:"lastUsedAt" doc:"Year 1 = never"`
}

// ListTemplates gives the templates that sandboxes can be made from.
func (c *Client) ListTemplates(ctx context.Context) ([]Template, error) {
	var out []Template
	return out, c.call(ctx, "GET", "/templates", nil, &out)
}

// BuildTemplate makes a template that the server knows how to build ("base") and
// returns when it is ready. Progress (may be nil) is given lines for a person.
func (c *Client) BuildTemplate(ctx context.Context, name string, progress func(string)) (Template, error) {
	return progressCall[Template](ctx, c, path("templates", name, "build"), struct{}{}, watcher{line: progress})
}

// ImportTemplate makes a template of an archive: a root file system tarball
// (also compressed), a `docker save` archive or a tar of an OCI layout.
func (c *Client) ImportTemplate(ctx context.Context, name string, archive io.Reader, progress func(string)) (Template, error) {
	var out Template
	h := header{"Accept": eventStream, "Content-Type": "application/octet-stream"}
	resp, err := c.send(ctx, "POST", path("templates", name, "import"), h, archive)
	if err != nil {
		return out, err
	}
	return out, progressResult(resp, watcher{line: progress}, &out)
}

// DeleteTemplate removes a template; it is refused while something needs it.
func (c *Client) DeleteTemplate(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", path("templates", name), nil, nil)
}
