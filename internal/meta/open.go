// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"github.com/uptrace/bun/schema"
	"modernc.org/sqlite"

	"github.com/opencomputer/oc/internal/fault"
)

const (
	// sqliteBusyTimeout is how long a statement waits for another writer, of
	// this process or of another one (`oc key create` beside the server).
	sqliteBusyTimeout = 15 * time.Second
	// maxConns bounds the connections of a handle. Reads run beside each other
	// and beside the one writer of SQLite.
	maxConns = 16
)

// DB is a handle on the metadata, safe for concurrent use. Inside InTx it
// stands for the transaction.
type DB struct {
	pool *sql.DB // nil inside a transaction
	q    bun.IDB
	now  func() time.Time
}

// backend is what differs between the two kinds of database.
type backend struct {
	pool    *sql.DB
	dialect schema.Dialect
	goose   goose.Dialect
	// lock keeps every other opener, in any process, out of the migrations.
	lock func(context.Context) (unlock func(), err error)
}

// Open opens the metadata database and brings its schema up to date; a file
// that does not exist is made, its directory is not. dsn is a file path,
// `sqlite:PATH`, or `postgres://…` as libpq knows it. Several handles, also of
// several processes, may be open at once.
//
// Errors are faults: Unavailable when the database cannot be reached or was
// written by a newer version, Invalid when dsn makes no sense.
func Open(ctx context.Context, dsn string, log *slog.Logger) (*DB, error) {
	b, err := connect(dsn)
	if err != nil {
		return nil, err
	}
	if err := b.migrate(ctx, log); err != nil {
		return nil, errors.Join(err, b.pool.Close())
	}
	return &DB{pool: b.pool, q: bun.NewDB(b.pool, b.dialect), now: time.Now}, nil
}

// Close ends the handle. Rows written are durable without it.
func (db *DB) Close() error {
	if db.pool == nil {
		return errors.New("meta: Close inside a transaction")
	}
	return db.pool.Close()
}

// InTx runs fn in one transaction: all that fn did through tx happens when fn
// returns nil, and nothing of it otherwise. An error that a method of tx
// returned ends the transaction: fn must return it. Only tx may be used inside
// fn; another handle would wait for the transaction it is part of.
//
// On SQLite writing transactions run one after the other. On PostgreSQL they
// run read-committed beside each other: what must not change between a read
// and a write belongs into one method of this package.
func (db *DB) InTx(ctx context.Context, fn func(tx *DB) error) error {
	var fnErr error
	err := db.q.RunInTx(ctx, nil, func(_ context.Context, tx bun.Tx) error {
		fnErr = fn(&DB{q: tx, now: db.now})
		return fnErr
	})
	if fnErr != nil {
		return fnErr
	}
	return translate(err, "transaction", "")
}

func connect(dsn string) (*backend, error) {
	switch {
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		return connectPostgres(dsn)
	case dsn == "":
		return nil, fault.New(fault.Invalid, "no metadata database is named").
			WithHint("give a file path or postgres://USER:PASSWORD@HOST/NAME")
	default:
		return connectSQLite(strings.TrimPrefix(dsn, "sqlite:"))
	}
}

func connectPostgres(dsn string) (*backend, error) {
	cfg, err := pgx.ParseConfig(dsn) // its error does not show the password
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the PostgreSQL address of the metadata database is malformed").
			WithHint("it looks like postgres://USER:PASSWORD@HOST/NAME")
	}
	// Queries arrive with their values in them; preparing each would only fill
	// the statement cache.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	pool := stdlib.OpenDB(*cfg)
	pool.SetMaxOpenConns(maxConns)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	return &backend{
		pool: pool, dialect: pgdialect.New(), goose: goose.DialectPostgres,
		lock: func(ctx context.Context) (func(), error) { return lockPostgres(ctx, pool) },
	}, nil
}

func connectSQLite(path string) (*backend, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("metadata path: %w", err)
	}
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Unavailable, err, "the directory of the metadata database %s does not exist", path).
			WithHint("start the server once, or create the directory")
	}
	conn, err := sqlite.NewConnector(sqliteDSN(path))
	if err != nil {
		return nil, fmt.Errorf("metadata path: %w", err)
	}
	pool := sql.OpenDB(conn)
	pool.SetMaxOpenConns(maxConns)
	pool.SetMaxIdleConns(maxConns)
	return &backend{
		pool: pool, dialect: sqlitedialect.New(), goose: goose.DialectSQLite3,
		lock: func(ctx context.Context) (func(), error) { return lockSQLite(ctx, path) },
	}, nil
}

// sqliteDSN is the address that opens the file at path with the settings all
// connections share. Transactions take the write lock at their start, so that
// none fails half-way because another one wrote first.
func sqliteDSN(path string) string {
	u := url.URL{Scheme: "file", Path: path}
	u.RawQuery = url.Values{
		"_busy_timeout": {fmt.Sprint(sqliteBusyTimeout.Milliseconds())},
		"_pragma":       {"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)"},
		"_txlock":       {"immediate"},
		"_timezone":     {"UTC"},
		"_dqs":          {"0"},
	}.Encode()
	return u.String()
}
