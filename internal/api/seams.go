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
	PoolStats() (hits, misses, ready int)
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

// Storage is what the server needs of where checkpoints are. Package checkpoint
// documents the types.
//
// Progress, unless nil, is given bytes done and in all (0: not known), from any
// goroutine, until the call returns. An id that is not the org's is a fault.NotFound.
type Storage interface {
	// Verify reads and checks every byte of a checkpoint.
	Verify(ctx context.Context, orgID, checkpointID string, progress func(done, total int64)) error
	// Export writes a checkpoint as one self-contained file, of whose bytes
	// progress tells: the total, if it is known, before the first write. The file
	// has an end of its own, by which Import knows that it is whole.
	Export(ctx context.Context, orgID, checkpointID string, w io.Writer, progress func(done, total int64)) error
	// Import makes a checkpoint of what Export wrote; an empty name is the one
	// that it had. A file that is cut short or altered is a fault.Invalid and
	// leaves nothing behind.
	Import(ctx context.Context, orgID, name string, r io.Reader, progress func(done, total int64)) (meta.Checkpoint, error)
	// Convert moves a checkpoint of the first format into the page store. One
	// that is there already is no error.
	Convert(ctx context.Context, orgID, checkpointID string, progress func(done, total int64)) (meta.Checkpoint, error)

	// What follows is about the whole store, whoever owns what is in it.

	// StoreStats tells how much is stored.
	StoreStats(ctx context.Context) (checkpoint.StoreStats, error)
	// StoreCheck looks for what is wrong, with readData at every byte. It fails
	// only if it cannot look.
	StoreCheck(ctx context.Context, readData bool, progress func(done, total int64)) (checkpoint.StoreReport, error)
	// StoreRepair mends what can be mended without a guess.
	StoreRepair(ctx context.Context, progress func(done, total int64)) (checkpoint.StoreRepaired, error)
	// StoreGC frees what no checkpoint needs; progress tells of what is freed.
	StoreGC(ctx context.Context, dryRun bool, progress func(done, total int64)) (checkpoint.StoreSwept, error)
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
