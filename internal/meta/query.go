// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"time"

	"github.com/uptrace/bun"

	"github.com/opencomputer/oc/internal/fault"
)

// idAttempts bounds the search for a free id. Ids have 32 random bits: with a
// million rows one attempt in four thousand meets a taken one.
const idAttempts = 8

// NewID gives prefix, a dash and 8 random hex digits. Insert methods give ids
// to rows themselves and try again when an id is taken.
func NewID(prefix string) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + "-" + hex.EncodeToString(b[:])
}

// Clock is the present as rows hold it: UTC, in the microseconds both databases
// keep, so that what is read back equals what was written.
func (db *DB) clock() time.Time { return db.now().UTC().Truncate(time.Microsecond) }

// stamp sets *t to the present if it is not set.
func (db *DB) stamp(t *time.Time) {
	if t.IsZero() {
		*t = db.clock()
	}
}

// insert writes a new row whose id is at id: a fresh one if it is empty. taken
// is the message for a unique violation other than that of the id.
func (db *DB) insert(ctx context.Context, row any, id *string, prefix, taken string) error {
	given := *id != ""
	for range idAttempts {
		if !given {
			*id = NewID(prefix)
		}
		// Not failing on a taken id keeps a surrounding transaction usable.
		res, err := db.q.NewInsert().Model(row).On("CONFLICT (id) DO NOTHING").Returning("").Exec(ctx)
		n, err := affected(res, err)
		if err == nil && n == 1 {
			return nil
		}
		if err != nil {
			if !given {
				*id = ""
			}
			return translate(err, "inserting a row", taken)
		}
		if given {
			break
		}
	}
	return fault.New(fault.Conflict, "id %s is taken", *id)
}

// one reads the row of q into a T, or says that what is not found.
func one[T any](ctx context.Context, db *DB, what string, q func(*bun.SelectQuery) *bun.SelectQuery) (T, error) {
	var row T
	err := q(db.q.NewSelect().Model(&row)).Limit(1).Scan(ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return row, notFound(what)
	}
	return row, translate(err, "reading a "+what, "")
}

// all reads the rows of q; no rows are an empty slice, never nil.
func all[T any](ctx context.Context, db *DB, q func(*bun.SelectQuery) *bun.SelectQuery) ([]T, error) {
	rows := []T{}
	err := q(db.q.NewSelect().Model(&rows)).Scan(ctx)
	return rows, translate(err, "reading rows", "")
}

// changed turns the result of an update that must meet one row into an error.
func changed(res sql.Result, err error, what, taken string) error {
	n, err := affected(res, err)
	if err != nil {
		return translate(err, "updating a "+what, taken)
	}
	if n == 0 {
		return notFound(what)
	}
	return nil
}

// remove deletes the row of the model type T with the id. That there is none
// is what was wanted.
func remove[T any](ctx context.Context, db *DB, what, column, id string) error {
	_, err := db.q.NewDelete().Model((*T)(nil)).Where("? = ?", bun.Ident(column), id).Exec(ctx)
	if err != nil && classify(err) == failForeign {
		return fault.Wrap(fault.Conflict, err, "%s %s is still referred to", what, id)
	}
	return translate(err, "deleting a "+what, "")
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func notFound(what string) error { return fault.New(fault.NotFound, "%s not found", what) }
