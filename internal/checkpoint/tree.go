// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"slices"
	"time"

	"github.com/opencomputer/oc/internal/meta"
)

// Tree gives the lineage of the org's sandboxes and checkpoints, parents before
// children: a checkpoint descends from the checkpoint before it or, if it is
// the first, from its sandbox; a sandbox from the checkpoint it came from. With
// a sandbox, only what is connected with it.
func (s *Service) Tree(ctx context.Context, orgID, sandboxID string) ([]Node, error) {
	if sandboxID != "" {
		if _, err := s.cfg.Sandboxes.Get(ctx, orgID, sandboxID); err != nil {
			return nil, err
		}
	}
	sandboxes, err := s.cfg.Meta.Sandboxes(ctx, orgID, meta.SandboxFilter{})
	if err != nil {
		return nil, err
	}
	checkpoints, err := s.cfg.Meta.CheckpointsOfOrg(ctx, orgID)
	if err != nil {
		return nil, err
	}
	owner := map[string]string{}
	for _, c := range checkpoints {
		owner[c.ID] = c.SandboxID
	}
	return connected(nodes(sandboxes, checkpoints), owner, sandboxID), nil
}

// nodes are in the order of creation, so that parents come first.
func nodes(sandboxes []meta.Sandbox, checkpoints []meta.Checkpoint) []Node {
	known := map[string]bool{}
	for _, c := range checkpoints {
		known[c.ID] = true
	}
	type made struct {
		Node
		at time.Time
	}
	var all []made
	for _, sb := range sandboxes {
		if sb.State == meta.SandboxPending {
			continue
		}
		n := Node{Kind: NodeSandbox, ID: sb.ID, Name: sb.Name, Status: string(sb.State)}
		if known[sb.FromCheckpoint] {
			n.ParentID = sb.FromCheckpoint
		}
		all = append(all, made{n, sb.CreatedAt})
	}
	for _, c := range checkpoints {
		n := Node{Kind: NodeCheckpoint, ID: c.ID, Name: c.Name, Status: string(c.Status), ParentID: c.SandboxID}
		if known[c.ParentID] {
			n.ParentID = c.ParentID
		}
		all = append(all, made{n, c.CreatedAt})
	}
	slices.SortStableFunc(all, func(a, b made) int { return a.at.Compare(b.at) })
	out := make([]Node, len(all))
	for i, m := range all {
		out[i] = m.Node
	}
	return out
}

// connected keeps the nodes of the family that the sandbox is in: what descends
// from one another, and sandboxes with the checkpoints taken of them.
func connected(in []Node, owner map[string]string, sandboxID string) []Node {
	if sandboxID == "" {
		return in
	}
	root := map[string]string{}
	var find func(id string) string
	find = func(id string) string {
		if r, ok := root[id]; ok && r != id {
			root[id] = find(r)
			return root[id]
		}
		return id
	}
	for _, n := range in {
		for _, other := range []string{n.ParentID, owner[n.ID]} {
			if other != "" {
				root[find(n.ID)] = find(other)
			}
		}
	}
	var out []Node
	for _, n := range in {
		if find(n.ID) == find(sandboxID) {
			out = append(out, n)
		}
	}
	return out
}
