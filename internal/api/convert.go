// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/meta"
)

// What a single node calls itself; the published clients want both fields.
const (
	region   = "local"
	workerID = "w1"
)

// sandboxOut makes the wire form of a sandbox.
func sandboxOut(sb meta.Sandbox) client.Sandbox {
	return client.Sandbox{
		ID: sb.ID, SandboxID: sb.ID, Name: sb.Name,
		Status: string(sb.State), Reason: sb.Reason,
		TemplateID: sb.Template, Template: sb.Template,
		Region: region, WorkerID: workerID,
		StartedAt: sb.StartedAt.UTC(), EndAt: endOf(sb),
		Timeout: sb.TimeoutSec, CPUCount: sb.CPUs, MemoryMB: sb.MemoryMB, DiskMB: sb.DiskMB,
		Metadata:         notNil(sb.Metadata),
		FromCheckpointID: sb.FromCheckpoint,
	}
}

// endOf is when a sandbox ended or will end if nobody uses it; zero for never.
func endOf(sb meta.Sandbox) time.Time {
	switch {
	case sb.StoppedAt != nil:
		return sb.StoppedAt.UTC()
	case sb.State == meta.SandboxRunning && sb.TimeoutSec > 0:
		return sb.LastActiveAt.Add(time.Duration(sb.TimeoutSec) * time.Second).UTC()
	}
	return time.Time{}
}

// checkpointOut makes the wire form of a checkpoint. A damaged one is a failed
// one to clients that know no better.
func checkpointOut(cp meta.Checkpoint) client.Checkpoint {
	damaged := cp.Status == meta.CheckpointDamaged
	if damaged {
		cp.Status = meta.CheckpointFailed
	}
	return client.Checkpoint{
		ID: cp.ID, SandboxID: cp.SandboxID, OrgID: cp.OrgID, Name: cp.Name,
		SandboxConfig: map[string]any{
			"template": cp.Template, "cpuCount": cp.CPUs, "memoryMB": cp.MemoryMB, "diskMB": cp.DiskMB,
		},
		Kind: cp.Kind, Status: string(cp.Status), Damaged: damaged,
		ParentID: cp.ParentID, Automatic: cp.Automatic, Unverified: cp.Unverified,
		SizeBytes: cp.SizeBytes, AddedBytes: cp.AddedBytes,
		CreatedAt: cp.CreatedAt.UTC(), ErrorMsg: cp.ErrorMsg, FailedAt: cp.FailedAt,
	}
}

// templateOut makes the wire form of a template.
func templateOut(t meta.Template) client.Template {
	out := client.Template{
		ID: t.ID, OrgID: t.OrgID, Name: t.Name, Status: t.Status, ErrorMsg: t.ErrorMsg,
		ContentHash: t.TreeHash, Manifest: map[string]any{}, SizeBytes: t.SizeBytes,
		CreatedAt: t.CreatedAt.UTC(),
	}
	if t.LastUsedAt != nil {
		out.LastUsedAt = t.LastUsedAt.UTC()
	}
	return out
}

// nodeOut makes the wire form of a node of the lineage.
func nodeOut(n checkpoint.Node) client.TreeNode {
	return client.TreeNode{Kind: n.Kind, ID: n.ID, Name: n.Name, Status: n.Status, ParentID: n.ParentID}
}

// each converts a list; the result is never nil, so that it becomes [].
func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, a := range in {
		out = append(out, f(a))
	}
	return out
}

// notNil makes a nil map an empty one, so that it becomes {}.
func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
