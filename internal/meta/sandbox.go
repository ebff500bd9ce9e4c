// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"
	"time"

	"github.com/uptrace/bun"
)

// SandboxFilter says which sandboxes a list shows.
type SandboxFilter struct {
	States []SandboxState // none: all but pending
	Limit  int            // 0: no limit
}

// InsertSandbox writes a new row. It assigns ID when it is empty, and CreatedAt
// when it is zero; LastActiveAt starts at CreatedAt.
func (db *DB) InsertSandbox(ctx context.Context, s *Sandbox) error {
	db.stamp(&s.CreatedAt)
	if s.LastActiveAt.IsZero() {
		s.LastActiveAt = s.CreatedAt
	}
	return db.insert(ctx, s, &s.ID, "sb", "sandbox already exists")
}

// Sandbox gives the org's sandbox, or a NotFound fault.
func (db *DB) Sandbox(ctx context.Context, orgID, id string) (Sandbox, error) {
	return one[Sandbox](ctx, db, "sandbox", func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("id = ?", id).Where("org_id = ?", orgID)
	})
}

// SandboxAnyOrg gives the sandbox whoever owns it, or a NotFound fault.
func (db *DB) SandboxAnyOrg(ctx context.Context, id string) (Sandbox, error) {
	return one[Sandbox](ctx, db, "sandbox", func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("id = ?", id)
	})
}

// Sandboxes lists the org's sandboxes, newest first.
func (db *DB) Sandboxes(ctx context.Context, orgID string, f SandboxFilter) ([]Sandbox, error) {
	return all[Sandbox](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		q = q.Where("org_id = ?", orgID).Order("created_at DESC", "id DESC")
		if len(f.States) > 0 {
			q = q.Where("state IN ?", bun.Tuple(f.States))
		} else {
			q = q.Where("state <> ?", SandboxPending)
		}
		if f.Limit > 0 {
			q = q.Limit(int64(f.Limit))
		}
		return q
	})
}

// SandboxesAnyOrg lists the sandboxes of all orgs in the states, or in every
// state, pending included, when none is given; oldest first.
func (db *DB) SandboxesAnyOrg(ctx context.Context, states ...SandboxState) ([]Sandbox, error) {
	return all[Sandbox](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		if len(states) > 0 {
			q = q.Where("state IN ?", bun.Tuple(states))
		}
		return q.Order("created_at", "id")
	})
}

// UpdateSandbox writes the whole row but for two columns that others write
// while an operation holds an older copy of the row: TimeoutSec belongs to
// SetSandboxTimeout alone, and LastActiveAt only ever moves forward.
func (db *DB) UpdateSandbox(ctx context.Context, s *Sandbox) error {
	res, err := db.q.NewUpdate().Model(s).ExcludeColumn("timeout_sec").
		Value("last_active_at", later, s.LastActiveAt, s.LastActiveAt).
		Where("id = ?", s.ID).Exec(ctx)
	return changed(res, err, "sandbox", "")
}

// later is the value of last_active_at that never goes back.
const later = "CASE WHEN last_active_at < ? THEN ? ELSE last_active_at END"

// TouchSandbox starts the rolling timeout anew at t. A t before the present
// start changes nothing.
func (db *DB) TouchSandbox(ctx context.Context, id string, t time.Time) error {
	res, err := db.q.NewUpdate().Model((*Sandbox)(nil)).
		Set("last_active_at = "+later, t, t).Where("id = ?", id).Exec(ctx)
	return changed(res, err, "sandbox", "")
}

// SetSandboxTimeout sets the rolling idle timeout in seconds, 0 for never.
func (db *DB) SetSandboxTimeout(ctx context.Context, id string, seconds int) error {
	res, err := db.q.NewUpdate().Model((*Sandbox)(nil)).
		Set("timeout_sec = ?", seconds).Where("id = ?", id).Exec(ctx)
	return changed(res, err, "sandbox", "")
}

// DeleteSandboxRow removes the row of a create that failed. While a generation
// or a checkpoint of it is recorded it fails with a Conflict fault.
func (db *DB) DeleteSandboxRow(ctx context.Context, id string) error {
	return remove[Sandbox](ctx, db, "sandbox", "id", id)
}
