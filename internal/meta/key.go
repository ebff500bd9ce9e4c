// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"unicode"
	"unicode/utf8"

	"github.com/uptrace/bun"

	"github.com/opencomputer/oc/internal/fault"
)

const (
	keyPrefix  = "osb_" // what every API key starts with
	keyBytes   = 32     // random bytes, written as hex
	keyShown   = 12     // characters kept in clear, for display
	maxNameLen = 64     // characters of an org's or a key's name
)

// EnsureOrg gives the org of the name, and makes it if there is none.
func (db *DB) EnsureOrg(ctx context.Context, name string) (Org, error) {
	if err := checkName("org", name); err != nil {
		return Org{}, err
	}
	for range idAttempts {
		org := Org{ID: NewID("org"), Name: name, CreatedAt: db.clock()}
		// Either the name or the id may be taken; the read tells which.
		if _, err := db.q.NewInsert().Model(&org).On("CONFLICT DO NOTHING").Returning("").Exec(ctx); err != nil {
			return Org{}, translate(err, "making an org", "")
		}
		org, err := one[Org](ctx, db, "org", func(q *bun.SelectQuery) *bun.SelectQuery {
			return q.Where("name = ?", name)
		})
		if !fault.Is(err, fault.NotFound) {
			return org, err
		}
	}
	return Org{}, errors.New("meta: no free org id")
}

// Orgs lists the orgs by name.
func (db *DB) Orgs(ctx context.Context) ([]Org, error) {
	return all[Org](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery { return q.Order("name") })
}

// CreateKey makes an API key for the org, and the org if there is none. The
// plain key is returned this once and stored nowhere.
func (db *DB) CreateKey(ctx context.Context, orgName, keyName string) (plain string, key Key, err error) {
	if keyName != "" {
		if err := checkName("key", keyName); err != nil {
			return "", Key{}, err
		}
	}
	var b [keyBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	plain = keyPrefix + hex.EncodeToString(b[:])
	key = Key{Name: keyName, Prefix: plain[:keyShown], Hash: hashKey(plain), CreatedAt: db.clock()}
	err = db.InTx(ctx, func(tx *DB) error {
		org, err := tx.EnsureOrg(ctx, orgName)
		if err != nil {
			return err
		}
		key.OrgID = org.ID
		return tx.insert(ctx, &key, &key.ID, "key", "")
	})
	if err != nil {
		return "", Key{}, err
	}
	return plain, key, nil
}

// LookupKey gives the owner of a plain key and its record. A key that is
// unknown, malformed or revoked is Forbidden, none at all Unauthorized. The
// cost is one hash and one indexed read whatever the key: what is looked up is
// the hash, so the time it takes says nothing about keys that exist.
func (db *DB) LookupKey(ctx context.Context, plain string) (Org, Key, error) {
	if plain == "" {
		return Org{}, Key{}, fault.New(fault.Unauthorized, "missing API key")
	}
	var row struct {
		Key Key `bun:"embed:key_"`
		Org Org `bun:"embed:org_"`
	}
	err := db.q.NewRaw(`SELECT
		k.id AS key_id, k.org_id AS key_org_id, k.name AS key_name, k.prefix AS key_prefix, k.hash AS key_hash,
		k.created_at AS key_created_at, k.revoked_at AS key_revoked_at,
		o.id AS org_id, o.name AS org_name, o.created_at AS org_created_at
		FROM keys k JOIN orgs o ON o.id = k.org_id WHERE k.hash = ?`, hashKey(plain)).Scan(ctx, &row)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Org{}, Key{}, translate(err, "looking up a key", "")
	}
	if err != nil || row.Key.RevokedAt != nil {
		return Org{}, Key{}, fault.New(fault.Forbidden, "invalid API key").
			WithHint("oc key list shows the keys, oc key create makes one")
	}
	return row.Org, row.Key, nil
}

// Keys lists the keys of the org of the name, or of all orgs for "", oldest
// first, revoked ones included.
func (db *DB) Keys(ctx context.Context, orgName string) ([]Key, error) {
	return all[Key](ctx, db, func(q *bun.SelectQuery) *bun.SelectQuery {
		if orgName != "" {
			q = q.Where("org_id IN (SELECT o.id FROM orgs o WHERE o.name = ?)", orgName)
		}
		return q.Order("created_at", "id")
	})
}

// RevokeKey makes the key useless from now on. Doing it again changes nothing.
func (db *DB) RevokeKey(ctx context.Context, id string) error {
	res, err := db.q.NewUpdate().Model((*Key)(nil)).
		Set("revoked_at = COALESCE(revoked_at, ?)", db.clock()).Where("id = ?", id).Exec(ctx)
	return changed(res, err, "key", "")
}

// CountKeys counts the keys ever made, revoked ones included: 0 means a first
// start.
func (db *DB) CountKeys(ctx context.Context) (int, error) {
	n, err := db.q.NewSelect().Model((*Key)(nil)).Count(ctx)
	return int(n), translate(err, "counting keys", "")
}

func hashKey(plain string) string {
	sum := sha256.Sum256([]byte(plain))
	return hex.EncodeToString(sum[:])
}

// checkName refuses a name that would not show well in a table.
func checkName(what, name string) error {
	ok := name != "" && utf8.ValidString(name) && utf8.RuneCountInString(name) <= maxNameLen
	for _, r := range name {
		ok = ok && unicode.IsPrint(r)
	}
	if !ok {
		return fault.New(fault.Invalid, "bad %s name %q", what, name).
			WithHint("a name has 1 to %d printable characters", maxNameLen)
	}
	return nil
}
