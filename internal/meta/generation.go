// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"

	"github.com/uptrace/bun"
)

// InsertGeneration writes a new row. It assigns ID when it is empty, and
// CreatedAt when it is zero.
func (db *DB) InsertGeneration(ctx context.Context, g *Generation) error {
	db.stamp(&g.CreatedAt)
	return db.insert(ctx, g, &g.ID, "gn", "generation already exists")
}

// Generation gives the generation, or a NotFound fault.
func (db *DB) Generation(ctx context.Context, id string) (Generation, error) {
	return one[Generation](ctx, db, "generation", func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("id = ?", id)
	})
}

// Generations lists every recorded run, oldest first.
func (db *DB) Generations(ctx context.Context) ([]Generation, error) {
	return all[Generation](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Order("created_at", "id")
	})
}

// GenerationsOf lists the recorded runs of the sandbox, oldest first.
func (db *DB) GenerationsOf(ctx context.Context, sandboxID string) ([]Generation, error) {
	return all[Generation](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("sandbox_id = ?", sandboxID).Order("created_at", "id")
	})
}

// UpdateGeneration writes the whole row.
func (db *DB) UpdateGeneration(ctx context.Context, g *Generation) error {
	res, err := db.q.NewUpdate().Model(g).Where("id = ?", g.ID).Exec(ctx)
	return changed(res, err, "generation", "")
}

// DeleteGeneration removes the row of a run of which nothing is left.
func (db *DB) DeleteGeneration(ctx context.Context, id string) error {
	return remove[Generation](ctx, db, "generation", "id", id)
}
