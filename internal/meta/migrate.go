// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// migrateTimeout bounds the wait for another opener plus the migrations.
	migrateTimeout = 2 * time.Minute
	// advisoryLock names the migration lock within a PostgreSQL database.
	advisoryLock = 0x6f636d657461 // "ocmeta"
)

// migrate brings the schema to the version this build knows. It refuses a
// database that a newer build has migrated, before it changes anything.
func (b *backend) migrate(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	unlock, err := b.lock(ctx)
	if err != nil {
		return translate(err, "opening the metadata database", "")
	}
	defer unlock()

	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(b.goose, b.pool, dir, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("metadata migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return translate(err, "reading the version of the metadata database", "")
	}
	if have > want {
		return fault.New(fault.Unavailable, "the metadata database has schema version %d; this version of oc knows %d", have, want).
			WithHint("run the newer version of oc that wrote it")
	}
	done, err := p.Up(ctx)
	if err != nil {
		return translate(err, "migrating the metadata database", "")
	}
	if len(done) > 0 {
		log.InfoContext(ctx, "metadata schema migrated", "from", have, "to", want)
	}
	return nil
}

// lockPostgres takes the advisory lock on a connection of its own.
func lockPostgres(ctx context.Context, pool *sql.DB) (func(), error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the metadata database cannot be reached").
			WithHint("check that PostgreSQL runs and that the address is right")
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(advisoryLock)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return func() {
		// A failure means that the connection is gone, and the lock with it.
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(advisoryLock))
		_ = conn.Close()
	}, nil
}

// lockSQLite takes a lock file beside the database and, holding it, makes the
// database file readable for its owner only. The lock cannot be on the
// database itself: closing any descriptor of that file would drop the locks
// SQLite holds on it in this process.
func lockSQLite(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the metadata database %s cannot be opened", path).
			WithHint("run as the user that owns the data directory")
	}
	if err := flock(ctx, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := createPrivate(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// flock takes an exclusive lock on f, waiting until ctx ends.
func flock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Unavailable, ctx.Err(), "another process holds %s", f.Name())
		case <-tick.C:
		}
	}
}

// createPrivate makes an empty file at path if there is none, and its name
// durable. SQLite gives its side files the mode of the database.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the metadata database %s cannot be made", path)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
