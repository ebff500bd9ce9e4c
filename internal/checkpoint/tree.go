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
	return connected(nodes(sandboxes, checkpoints), sandboxID), nil
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

// connected keeps the nodes of the tree that the sandbox is in.
func connected(in []Node, sandboxID string) []Node {
	if sandboxID == "" {
		return in
	}
	root := map[string]string{}
	for _, n := range in { // parents come first
		root[n.ID] = n.ID
		if n.ParentID != "" {
			root[n.ID] = root[n.ParentID]
		}
	}
	var out []Node
	for _, n := range in {
		if root[n.ID] == root[sandboxID] {
			out = append(out, n)
		}
	}
	return out
}
