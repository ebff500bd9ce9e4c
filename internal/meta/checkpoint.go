// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect"

	"github.com/opencomputer/oc/internal/fault"
)

const nameTaken = "checkpoint name already exists for this sandbox"

// InsertCheckpoint writes a new row, if the sandbox exists in c.OrgID, has no
// other living checkpoint of that name, and has fewer than limit checkpoints
// (0: no limit). Failed, damaged, going and automatic checkpoints do not count,
// and an automatic one is not limited. A damaged one keeps its name, to which a
// repair may bring it back. Check and insert are one: of any number of
// parallel inserts no more than limit succeed.
//
// It assigns ID when it is empty, and CreatedAt when it is zero. Faults:
// NotFound for the sandbox, Conflict for the name, Invalid for the limit.
func (db *DB) InsertCheckpoint(ctx context.Context, c *Checkpoint, limit int) error {
	return db.InTx(ctx, func(tx *DB) error {
		if err := tx.lockSandbox(ctx, c.OrgID, c.SandboxID); err != nil {
			return err
		}
		if limit > 0 && !c.Automatic {
			n, err := tx.q.NewSelect().Model((*Checkpoint)(nil)).
				Where("sandbox_id = ?", c.SandboxID).Where("automatic = ?", false).
				Where("status NOT IN ?", bun.Tuple([]CheckpointStatus{CheckpointFailed, CheckpointDamaged, CheckpointDeleting})).
				Count(ctx)
			if err != nil {
				return translate(err, "counting checkpoints", "")
			}
			if int(n) >= limit {
				return fault.New(fault.Invalid, "sandbox %s has %d checkpoints, the limit is %d", c.SandboxID, n, limit).
					WithHint("delete one: oc checkpoint list %s", c.SandboxID)
			}
		}
		tx.stamp(&c.CreatedAt)
		return tx.insert(ctx, c, &c.ID, "cp", nameTaken)
	})
}

// lockSandbox keeps every other transaction that calls it for the sandbox
// waiting until this one ends. On SQLite the transaction itself does.
func (db *DB) lockSandbox(ctx context.Context, orgID, id string) error {
	_, err := one[Sandbox](ctx, db, "sandbox", func(q *bun.SelectQuery) *bun.SelectQuery {
		q = q.Column("id").Where("id = ?", id).Where("org_id = ?", orgID)
		if db.q.Dialect().Name() == dialect.PG {
			q = q.For("UPDATE")
		}
		return q
	})
	return err
}

// Checkpoint gives the org's checkpoint, or a NotFound fault; one that is
// being deleted is not found.
func (db *DB) Checkpoint(ctx context.Context, orgID, id string) (Checkpoint, error) {
	return one[Checkpoint](ctx, db, "checkpoint", func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("id = ?", id).Where("org_id = ?", orgID).Where("status <> ?", CheckpointDeleting)
	})
}

// CheckpointAnyOrg gives the checkpoint whoever owns it and whatever its
// status, or a NotFound fault.
func (db *DB) CheckpointAnyOrg(ctx context.Context, id string) (Checkpoint, error) {
	return one[Checkpoint](ctx, db, "checkpoint", func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("id = ?", id)
	})
}

// Checkpoints lists the org's checkpoints of the sandbox, newest first, without
// those that are being deleted.
func (db *DB) Checkpoints(ctx context.Context, orgID, sandboxID string) ([]Checkpoint, error) {
	return all[Checkpoint](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		return shown(q, orgID).Where("sandbox_id = ?", sandboxID)
	})
}

// CheckpointsOfOrg lists all checkpoints of the org, newest first, without
// those that are being deleted.
func (db *DB) CheckpointsOfOrg(ctx context.Context, orgID string) ([]Checkpoint, error) {
	return all[Checkpoint](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery { return shown(q, orgID) })
}

func shown(q *bun.SelectQuery, orgID string) *bun.SelectQuery {
	return q.Where("org_id = ?", orgID).Where("status <> ?", CheckpointDeleting).
		Order("created_at DESC", "id DESC")
}

// CheckpointsAnyOrg lists the checkpoints of all orgs with the statuses, or
// with any when none is given; oldest first.
func (db *DB) CheckpointsAnyOrg(ctx context.Context, statuses ...CheckpointStatus) ([]Checkpoint, error) {
	return all[Checkpoint](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		if len(statuses) > 0 {
			q = q.Where("status IN ?", bun.Tuple(statuses))
		}
		return q.Order("created_at", "id")
	})
}

// UpdateCheckpoint writes the whole row. A checkpoint that is being deleted
// stays so: any other status is refused like an unknown id, so that a late
// writer cannot bring it back.
func (db *DB) UpdateCheckpoint(ctx context.Context, c *Checkpoint) error {
	q := db.q.NewUpdate().Model(c).Where("id = ?", c.ID)
	if c.Status != CheckpointDeleting {
		q = q.Where("status <> ?", CheckpointDeleting)
	}
	res, err := q.Exec(ctx)
	return changed(res, err, "checkpoint", nameTaken)
}

// JudgeCheckpoint changes the status of a checkpoint, and its reason, if it still
// has the status and the object that c has: what was found out about its bytes
// says nothing of others, and of a checkpoint that was deleted or judged meanwhile
// nothing is written. It leaves the rest of the row as it is, and tells whether
// it changed it.
func (db *DB) JudgeCheckpoint(ctx context.Context, c Checkpoint, status CheckpointStatus, why string) (bool, error) {
	res, err := db.q.NewUpdate().Model((*Checkpoint)(nil)).Set("status = ?", status).Set("error_msg = ?", why).
		Where("id = ?", c.ID).Where("status = ?", c.Status).Where("object = ?", c.Object).Exec(ctx)
	n, err := affected(res, err)
	return n > 0, translate(err, "updating a checkpoint", nameTaken)
}

// DeleteCheckpointRow removes the row of a checkpoint of which nothing is left.
func (db *DB) DeleteCheckpointRow(ctx context.Context, id string) error {
	return remove[Checkpoint](ctx, db, "checkpoint", "id", id)
}
