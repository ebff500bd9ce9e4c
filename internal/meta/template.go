// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"
	"time"

	"github.com/uptrace/bun"

	"github.com/opencomputer/oc/internal/fault"
)

// Use counts what still needs a tree or an image.
type Use struct {
	Sandboxes   int // being made from it, or running on it
	Checkpoints int // processing or ready
	Templates   int // that name the tree
}

// Any tells whether anything does.
func (u Use) Any() bool { return u.Sandboxes+u.Checkpoints+u.Templates > 0 }

// InsertTemplate writes a new row. It assigns ID when it is empty, and
// CreatedAt when it is zero. A name that the org has is a Conflict fault.
func (db *DB) InsertTemplate(ctx context.Context, t *Template) error {
	db.stamp(&t.CreatedAt)
	return db.insert(ctx, t, &t.ID, "tpl", templateTaken(t))
}

// Template gives the template the org knows by the name: its own, or else the
// built-in one. There may be none: a NotFound fault.
func (db *DB) Template(ctx context.Context, orgID, name string) (Template, error) {
	t, err := one[Template](ctx, db, "template", func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("name = ?", name).Where("org_id IN ?", bun.Tuple([]string{orgID, ""})).
			Order("org_id DESC") // "" comes last
	})
	if fault.Is(err, fault.NotFound) {
		return t, fault.New(fault.NotFound, "template not found: %s", name).WithHint("oc template list shows what there is")
	}
	return t, err
}

// Templates lists the org's own and the built-in templates by name.
func (db *DB) Templates(ctx context.Context, orgID string) ([]Template, error) {
	return all[Template](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("org_id IN ?", bun.Tuple([]string{orgID, ""})).Order("name", "org_id DESC")
	})
}

// TemplatesAnyOrg lists the templates of all orgs, oldest first.
func (db *DB) TemplatesAnyOrg(ctx context.Context) ([]Template, error) {
	return all[Template](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Order("created_at", "id")
	})
}

// UpdateTemplate writes the whole row but for LastUsedAt, which belongs to
// TouchTemplate.
func (db *DB) UpdateTemplate(ctx context.Context, t *Template) error {
	res, err := db.q.NewUpdate().Model(t).ExcludeColumn("last_used_at").Where("id = ?", t.ID).Exec(ctx)
	return changed(res, err, "template", templateTaken(t))
}

// TouchTemplate records that a sandbox was made from the template at t.
func (db *DB) TouchTemplate(ctx context.Context, id string, t time.Time) error {
	res, err := db.q.NewUpdate().Model((*Template)(nil)).Set("last_used_at = ?", t).Where("id = ?", id).Exec(ctx)
	return changed(res, err, "template", "")
}

// DeleteTemplateRow removes the row.
func (db *DB) DeleteTemplateRow(ctx context.Context, id string) error {
	return remove[Template](ctx, db, "template", "id", id)
}

func templateTaken(t *Template) string { return "template name already exists: " + t.Name }

// TreeInUse counts what needs the tree: the templates that name it (all of
// them, the asking one included), sandboxes that run on an image of it or are
// being made from such a template, and checkpoints. Generations without a
// sandbox, prepared ones, do not count.
func (db *DB) TreeInUse(ctx context.Context, treeHash string) (Use, error) {
	return db.use(ctx, `SELECT
		(SELECT COUNT(*) FROM generations g JOIN images i ON i.hash = g.image_hash WHERE i.tree_hash = ?0 AND g.sandbox_id IS NOT NULL) +
		(SELECT COUNT(*) FROM sandboxes s WHERE s.state = ?1 AND EXISTS (
			SELECT 1 FROM templates t WHERE t.name = s.template AND t.org_id IN (s.org_id, '') AND t.tree_hash = ?0)),
		(SELECT COUNT(*) FROM checkpoints c WHERE c.tree_hash = ?0 AND c.status IN (?2, ?3, ?4)),
		(SELECT COUNT(*) FROM templates t WHERE t.tree_hash = ?0)`,
		treeHash, SandboxPending, CheckpointProcessing, CheckpointReady, CheckpointDamaged)
}

func (db *DB) use(ctx context.Context, query string, args ...any) (Use, error) {
	var u Use
	err := db.q.NewRaw(query, args...).Scan(ctx, &u.Sandboxes, &u.Checkpoints, &u.Templates)
	return u, translate(err, "counting uses", "")
}
