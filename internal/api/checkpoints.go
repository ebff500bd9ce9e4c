// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"net/http"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
)

func (s *Server) checkpointRoutes() {
	progressing(s, "POST /api/sandboxes/{id}/checkpoints", "Checkpoint a sandbox, which goes on running", http.StatusCreated, s.createCheckpoint)
	typed(s, "GET /api/sandboxes/{id}/checkpoints", "A sandbox's checkpoints, newest first", http.StatusOK, s.listCheckpoints)
	typed(s, "POST /api/sandboxes/{id}/checkpoints/{checkpoint}/restore", "Put a sandbox back to a checkpoint", http.StatusOK, s.restoreCheckpoint)
	empty(s, "DELETE /api/sandboxes/{id}/checkpoints/{checkpoint}", "Delete a checkpoint; sandboxes made of it stay", s.deleteCheckpoint)
	progressing(s, "POST /api/sandboxes/from-checkpoint/{checkpoint}", "Make new sandboxes of a checkpoint", http.StatusCreated, s.spawnCheckpoint)
	typed(s, "POST /api/sandboxes/{id}/fork", "Checkpoint a sandbox and make new ones of that", http.StatusCreated, s.forkSandbox)
	typed(s, "GET /api/checkpoints/tree", "Lineage of sandboxes and checkpoints", http.StatusOK, s.tree)
	typed(s, "GET /api/checkpoints/{checkpoint}", "A checkpoint", http.StatusOK, s.getCheckpoint)
}

type createCheckpointInput struct {
	ID   string `path:"id" doc:"Sandbox id"`
	Body client.CreateCheckpointRequest
}

func (s *Server) createCheckpoint(ctx context.Context, in *createCheckpointInput, count func(done, total int64)) (client.Checkpoint, error) {
	// An unknown sandbox is reported before a bad body.
	if _, err := s.cfg.Sandboxes.Get(ctx, orgOf(ctx), in.ID); err != nil {
		return client.Checkpoint{}, err
	}
	b := &in.Body
	switch {
	case b.Name == "":
		return client.Checkpoint{}, fault.New(fault.Invalid, "name is required")
	case b.Kind != "" && b.Kind != "full" && b.Kind != "disk_only":
		return client.Checkpoint{}, fault.New(fault.Invalid, "kind must be full or disk_only")
	case b.PromoteToFull != nil && *b.PromoteToFull && b.Kind != "disk_only":
		return client.Checkpoint{}, fault.New(fault.Invalid, "promoteToFull requires kind disk_only")
	}
	req := checkpoint.CreateRequest{Name: b.Name, Kind: first(b.Kind, "full"), NoWait: b.NoWait, Progress: count}
	if p := b.RetentionPolicy; p != nil {
		if p.Mode != "" && p.Mode != "none" && p.Mode != "delete_oldest" {
			return client.Checkpoint{}, fault.New(fault.Invalid, "retentionPolicy.mode must be none or delete_oldest")
		}
		if p.MaxCount < 0 {
			return client.Checkpoint{}, fault.New(fault.Invalid, "retentionPolicy.maxCount must not be negative")
		}
		req.Retention = checkpoint.Retention{Mode: first(p.Mode, "none"), MaxCount: p.MaxCount}
	}
	cp, err := s.cfg.Checkpoints.Create(ctx, orgOf(ctx), in.ID, req)
	return checkpointOut(cp), err
}

func (s *Server) listCheckpoints(ctx context.Context, in *idInput) ([]client.Checkpoint, error) {
	cps, err := s.cfg.Checkpoints.List(ctx, orgOf(ctx), in.ID)
	return each(cps, checkpointOut), err
}

type checkpointInput struct {
	Checkpoint string `path:"checkpoint" doc:"Checkpoint id"`
}

func (s *Server) getCheckpoint(ctx context.Context, in *checkpointInput) (client.Checkpoint, error) {
	cp, err := s.cfg.Checkpoints.Get(ctx, orgOf(ctx), in.Checkpoint)
	return checkpointOut(cp), err
}

type sandboxCheckpointInput struct {
	ID         string `path:"id" doc:"Sandbox id"`
	Checkpoint string `path:"checkpoint" doc:"Checkpoint id"`
}

func (s *Server) restoreCheckpoint(ctx context.Context, in *restoreInput) (client.RestoreResult, error) {
	res := client.RestoreResult{SandboxID: in.ID, CheckpointID: in.Checkpoint, Status: "restored"}
	if in.Body.NoSave {
		return res, s.cfg.Checkpoints.Restore(ctx, orgOf(ctx), in.ID, in.Checkpoint)
	}
	saved, err := s.cfg.Checkpoints.RestoreSaving(ctx, orgOf(ctx), in.ID, in.Checkpoint)
	if saved.Checkpoint != nil {
		res.SavedCheckpointID = saved.Checkpoint.ID
	}
	res.Note = saved.Note
	return res, err
}

type restoreInput struct {
	ID         string `path:"id" doc:"Sandbox id"`
	Checkpoint string `path:"checkpoint" doc:"Checkpoint id"`
	Body       client.RestoreRequest
}

func (s *Server) deleteCheckpoint(ctx context.Context, in *sandboxCheckpointInput) error {
	return s.cfg.Checkpoints.Delete(ctx, orgOf(ctx), in.ID, in.Checkpoint)
}

// spawnBody is a spawn as released clients may send it.
type spawnBody struct {
	client.SpawnRequest
	SecretStore string `json:"secretStore,omitempty" doc:"Not available in this release"`
}

// request checks a spawn and makes the service's form of it.
func (b *spawnBody) request(s *Server) (checkpoint.SpawnRequest, error) {
	if b.SecretStore != "" {
		return checkpoint.SpawnRequest{}, unsupported("secretStore")
	}
	if err := s.checkShape(0, b.MemoryMB, 0, b.Timeout); err != nil {
		return checkpoint.SpawnRequest{}, err
	}
	return checkpoint.SpawnRequest{
		Count: cmp.Or(b.Count, 1), Name: b.Name, TimeoutSec: b.Timeout,
		Envs: b.Envs, Metadata: b.Metadata, MemoryMB: b.MemoryMB,
	}, nil
}

type spawnInput struct {
	Checkpoint string `path:"checkpoint" doc:"Checkpoint id"`
	Body       spawnBody
}

func (s *Server) spawnCheckpoint(ctx context.Context, in *spawnInput, count func(done, total int64)) (client.SpawnResult, error) {
	req, err := in.Body.request(s)
	if err != nil {
		return client.SpawnResult{}, err
	}
	req.Progress = count
	sbs, err := s.cfg.Checkpoints.Spawn(ctx, orgOf(ctx), in.Checkpoint, req)
	if err != nil {
		return client.SpawnResult{}, err
	}
	if len(sbs) == 0 {
		return client.SpawnResult{}, fault.New(fault.Internal, "the spawn made no sandbox")
	}
	out := client.SpawnResult{Sandbox: sandboxOut(sbs[0])}
	if len(sbs) > 1 {
		out.Sandboxes = each(sbs, sandboxOut)
	}
	return out, nil
}

type forkInput struct {
	ID   string `path:"id" doc:"Sandbox id"`
	Body spawnBody
}

func (s *Server) forkSandbox(ctx context.Context, in *forkInput) (client.ForkResult, error) {
	req, err := in.Body.request(s)
	if err != nil {
		return client.ForkResult{}, err
	}
	cp, sbs, err := s.cfg.Checkpoints.Fork(ctx, orgOf(ctx), in.ID, req)
	return client.ForkResult{Checkpoint: checkpointOut(cp), Sandboxes: each(sbs, sandboxOut)}, err
}

type treeInput struct {
	Sandbox string `query:"sandbox" doc:"Only what is related to this sandbox"`
}

func (s *Server) tree(ctx context.Context, in *treeInput) ([]client.TreeNode, error) {
	nodes, err := s.cfg.Checkpoints.Tree(ctx, orgOf(ctx), in.Sandbox)
	return each(nodes, nodeOut), err
}
