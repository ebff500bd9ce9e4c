// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"io"
	"net/url"
	"strconv"
)

// ExpectedBytes is the header of an export that says how many bytes it has before it
// is compressed: so many, about, will come at most.
const ExpectedBytes = "X-Expected-Bytes"

// AnotherOrg stands for the id of a checkpoint that the caller's org does not have.
const AnotherOrg = "(another org)"

// VerifyResult answers a verification that found nothing wrong.
type VerifyResult struct {
	ID     string `json:"id"`
	Status string `json:"status" doc:"verified"`
}

// VerifyCheckpoint has the server read and check every byte of a checkpoint. An
// Error says what is wrong with it. Progress (may be nil) is given bytes done and
// in all; 0 is not known.
func (c *Client) VerifyCheckpoint(ctx context.Context, checkpointID string, progress func(done, total int64)) (VerifyResult, error) {
	return progressCall[VerifyResult](ctx, c, path("checkpoints", checkpointID, "verify"), struct{}{}, watcher{count: progress})
}

// ExportCheckpoint opens a checkpoint as one self-contained file, and says how
// many bytes that will have at most, about; 0 is not known. The reader must be closed; it
// fails with io.ErrUnexpectedEOF if the content was cut short. The file holds the
// memory of processes, and all that is secret in it.
func (c *Client) ExportCheckpoint(ctx context.Context, checkpointID string) (file io.ReadCloser, most int64, err error) {
	resp, err := c.send(ctx, "GET", path("checkpoints", checkpointID, "export"), nil, nil)
	if err != nil {
		return nil, 0, err
	}
	most, _ = strconv.ParseInt(resp.Header.Get(ExpectedBytes), 10, 64)
	return resp.Body, max(most, 0), nil
}

// ImportCheckpoint makes a checkpoint of an exported file. An empty name is the
// one that the checkpoint had. Progress is VerifyCheckpoint's, of what the server
// has read of the file, and then, from the beginning, of what it has stored.
func (c *Client) ImportCheckpoint(ctx context.Context, name string, file io.Reader, progress func(done, total int64)) (Checkpoint, error) {
	var cp Checkpoint
	p := "/checkpoints/import"
	if name != "" {
		p += "?name=" + url.QueryEscape(name)
	}
	h := header{"Accept": eventStream, "Content-Type": "application/octet-stream"}
	// Wrapping keeps net/http from closing what the caller owns.
	resp, err := c.send(ctx, "POST", p, h, io.NopCloser(file))
	if err != nil {
		return cp, err
	}
	return cp, progressResult(resp, watcher{count: progress}, &cp)
}

// ConvertCheckpoint moves a checkpoint of the first format into the page store.
// Progress is VerifyCheckpoint's, of what is stored.
func (c *Client) ConvertCheckpoint(ctx context.Context, checkpointID string, progress func(done, total int64)) (Checkpoint, error) {
	return progressCall[Checkpoint](ctx, c, path("checkpoints", checkpointID, "convert"), struct{}{}, watcher{count: progress})
}

// StoreStats says how much the server's store holds, of all orgs.
type StoreStats struct {
	Where        string `json:"where" doc:"A directory or s3://bucket/prefix"`
	Checkpoints  int    `json:"checkpoints"`
	LogicalBytes int64  `json:"logicalBytes" doc:"Sum of the sizes of their states"`
	StoredBytes  int64  `json:"storedBytes" doc:"What the store takes for them"`
	CacheBytes   int64  `json:"cacheBytes" doc:"What the local cache takes"`
	CacheLimit   int64  `json:"cacheLimit" doc:"What it may take; 0 = there is none"`
	Sealed       bool   `json:"sealed" doc:"New checkpoints are sealed with a key"`
}

// StoreStats asks how much the store holds.
func (c *Client) StoreStats(ctx context.Context) (StoreStats, error) {
	var out StoreStats
	return out, c.call(ctx, "GET", "/store", nil, &out)
}

// StoreProblem is something that is wrong in the store.
type StoreProblem struct {
	Checkpoint string `json:"checkpoint,omitempty" doc:"Its id if it is the caller's org's; (another org); empty if it cannot be told"`
	Object     string `json:"object,omitempty" doc:"The checkpoint's object in the store"`
	Key        string `json:"key" doc:"What is wrong, as the store names it"`
	What       string `json:"what" doc:"What is wrong with it"`
	Harmless   bool   `json:"harmless" doc:"Every checkpoint can still be used"`
}

// StoreCheckRequest says how thorough a check is.
type StoreCheckRequest struct {
	ReadData bool `json:"readData,omitempty" doc:"Read every byte"`
}

// StoreReport is what a check found.
type StoreReport struct {
	Checkpoints int            `json:"checkpoints" doc:"Complete ones, sound or not"`
	Packs       int            `json:"packs" doc:"Objects that they need"`
	Bytes       int64          `json:"bytes" doc:"Of those objects"`
	Leftovers   int            `json:"leftovers" doc:"Objects that no checkpoint needs"`
	LeftBytes   int64          `json:"leftBytes" doc:"Of those"`
	Problems    []StoreProblem `json:"problems"`
}

// CheckStore has the server look for what is wrong in its store. That something
// is wrong is not an error of the call. Progress is VerifyCheckpoint's.
func (c *Client) CheckStore(ctx context.Context, req StoreCheckRequest, progress func(done, total int64)) (StoreReport, error) {
	return progressCall[StoreReport](ctx, c, "/store/check", req, watcher{count: progress})
}

// StoreRepaired is what a repair did.
type StoreRepaired struct {
	Done      []string       `json:"done" doc:"What was done, for a person"`
	Remaining []StoreProblem `json:"remaining" doc:"What could not be mended"`
}

// RepairStore has the server mend what can be mended without a guess. Progress
// is VerifyCheckpoint's.
func (c *Client) RepairStore(ctx context.Context, progress func(done, total int64)) (StoreRepaired, error) {
	return progressCall[StoreRepaired](ctx, c, "/store/repair", struct{}{}, watcher{count: progress})
}

// StoreGCRequest says how to collect garbage.
type StoreGCRequest struct {
	DryRun bool `json:"dryRun,omitempty" doc:"Change nothing, say what would be freed"`
}

// StoreSwept is what a garbage collection freed, or would free.
type StoreSwept struct {
	Packs       int   `json:"packs" doc:"Objects of which nothing was needed any more"`
	Bytes       int64 `json:"bytes" doc:"In them"`
	Checkpoints int   `json:"checkpoints" doc:"Deleted or broken off, of which nothing is left now"`
	Expired     int   `json:"expired" doc:"Writers and readers that had gone without a word"`
	Unknown     int   `json:"unknown" doc:"Objects that do not have a name of the store's: left alone"`
	DryRun      bool  `json:"dryRun"`
}

// CollectStore has the server free what no checkpoint needs. Progress is
// VerifyCheckpoint's, of what is freed.
func (c *Client) CollectStore(ctx context.Context, req StoreGCRequest, progress func(done, total int64)) (StoreSwept, error) {
	return progressCall[StoreSwept](ctx, c, "/store/gc", req, watcher{count: progress})
}
