// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"

	"github.com/uptrace/bun"
)

// UpsertImage records an image; one that is recorded keeps its CreatedAt.
func (db *DB) UpsertImage(ctx context.Context, i *Image) error {
	db.stamp(&i.CreatedAt)
	_, err := db.q.NewInsert().Model(i).On("CONFLICT (hash) DO UPDATE").
		Set("tree_hash = EXCLUDED.tree_hash").Set("agent_hash = EXCLUDED.agent_hash").
		Set("size_bytes = EXCLUDED.size_bytes").Returning("").Exec(ctx)
	return translate(err, "recording an image", "")
}

// Image gives the image of the hash, or a NotFound fault.
func (db *DB) Image(ctx context.Context, hash string) (Image, error) {
	return one[Image](ctx, db, "image", func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("hash = ?", hash)
	})
}

// Images lists the images, oldest first.
func (db *DB) Images(ctx context.Context) ([]Image, error) {
	return all[Image](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Order("created_at", "hash")
	})
}

// DeleteImageRow removes the row.
func (db *DB) DeleteImageRow(ctx context.Context, hash string) error {
	return remove[Image](ctx, db, "image", "hash", hash)
}

// ImageInUse counts what needs the image: generations of sandboxes, whatever
// their state, and checkpoints. Templates need a tree, not an image.
func (db *DB) ImageInUse(ctx context.Context, hash string) (Use, error) {
	return db.use(ctx, `SELECT
		(SELECT COUNT(*) FROM generations g WHERE g.image_hash = ?0 AND g.sandbox_id IS NOT NULL),
		(SELECT COUNT(*) FROM checkpoints c WHERE c.image_hash = ?0 AND c.status IN (?1, ?2, ?3)),
		0`, hash, CheckpointProcessing, CheckpointReady, CheckpointDamaged)
}
