// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"io"

	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

// Sandboxes is what the server needs of the life cycle of sandboxes. Package
// sandbox documents the methods.
type Sandboxes interface {
	Create(ctx context.Context, orgID string, req sandbox.CreateRequest) (meta.Sandbox, error)
	Get(ctx context.Context, orgID, id string) (meta.Sandbox, error)
	List(ctx context.Context, orgID string, all bool) ([]meta.Sandbox, error)
	Kill(ctx context.Context, orgID, id string) error
	SetTimeout(ctx context.Context, orgID, id string, seconds int) error
	Acquire(ctx context.Context, orgID, id string) (*sandbox.Lease, error)
}

// Checkpoints is what the server needs of checkpoints. Package checkpoint
// documents the methods.
type Checkpoints interface {
	Create(ctx context.Context, orgID, sandboxID string, req checkpoint.CreateRequest) (meta.Checkpoint, error)
	List(ctx context.Context, orgID, sandboxID string) ([]meta.Checkpoint, error)
	Get(ctx context.Context, orgID, id string) (meta.Checkpoint, error)
	Restore(ctx context.Context, orgID, sandboxID, checkpointID string) error
	RestoreSaving(ctx context.Context, orgID, sandboxID, checkpointID string) (checkpoint.Saved, error)
	Spawn(ctx context.Context, orgID, checkpointID string, req checkpoint.SpawnRequest) ([]meta.Sandbox, error)
	Fork(ctx context.Context, orgID, sandboxID string, req checkpoint.SpawnRequest) (meta.Checkpoint, []meta.Sandbox, error)
	Delete(ctx context.Context, orgID, sandboxID, checkpointID string) error
	Tree(ctx context.Context, orgID, sandboxID string) ([]checkpoint.Node, error)
}

// Templates is what the server needs of the catalogue of templates. Progress is
// given lines for a person, from any goroutine, until the call returns.
type Templates interface {
	List(ctx context.Context, orgID string) ([]meta.Template, error)
	Build(ctx context.Context, orgID, name string, progress func(string)) (meta.Template, error)
	Import(ctx context.Context, orgID, name string, archive io.Reader, progress func(string)) (meta.Template, error)
	Delete(ctx context.Context, orgID, name string) error
}

// Keys finds out who an API key belongs to. No key at all is a
// fault.Unauthorized, a wrong one a fault.Forbidden.
type Keys interface {
	LookupKey(ctx context.Context, plain string) (meta.Org, meta.Key, error)
}
