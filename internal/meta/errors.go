// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/opencomputer/oc/internal/fault"
)

// failure is what went wrong in a statement, independent of the database.
type failure int

const (
	failOther   failure = iota
	failUnique          // a value that must be unique exists
	failForeign         // a row that is referred to is missing, or still referred to
	failBusy            // other writers held the database for too long
	failSpace           // no space left
	failCorrupt         // the file is damaged or no database
	failDown            // the database server does not serve
)

// translate turns the error of a statement into what the caller can act on.
// taken is the message for a unique violation. Faults pass unchanged.
func translate(err error, doing, taken string) error {
	if err == nil {
		return nil
	}
	var f *fault.Fault
	if errors.As(err, &f) {
		return err
	}
	switch classify(err) {
	case failUnique:
		if taken != "" {
			return fault.New(fault.Conflict, "%s", taken)
		}
	case failBusy:
		return fault.Wrap(fault.Unavailable, err, "the metadata database is busy").
			WithHint("try again; if it stays so, look for a process that holds the database")
	case failSpace:
		return fault.Wrap(fault.Unavailable, err, "no space is left for the metadata database").
			WithHint("free space on its disk")
	case failCorrupt:
		return fault.Wrap(fault.Unavailable, err, "the metadata database is damaged or is no database").
			WithHint("restore it from a backup")
	case failDown:
		return fault.Wrap(fault.Unavailable, err, "the metadata database does not answer").
			WithHint("check that PostgreSQL runs and accepts connections")
	case failForeign, failOther:
	}
	return fmt.Errorf("meta: %s: %w", doing, err)
}

func classify(err error) failure {
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return classifySQLite(lite.Code())
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return classifyPostgres(pg.Code)
	}
	var refused *pgconn.ConnectError
	if errors.As(err, &refused) {
		return failDown
	}
	return failOther
}

// classifySQLite reads an extended result code, whose low byte is the primary
// one (sqlite.org/rescode.html).
func classifySQLite(code int) failure {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return failUnique
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return failForeign
	}
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return failBusy
	case sqlite3.SQLITE_FULL:
		return failSpace
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return failCorrupt
	}
	return failOther
}

// classifyPostgres reads a SQLSTATE (PostgreSQL manual, appendix A).
func classifyPostgres(state string) failure {
	switch state {
	case "23505":
		return failUnique
	case "23503":
		return failForeign
	case "40P01", "55P03":
		return failBusy
	case "53100":
		return failSpace
	case "53300", "57P01", "57P02", "57P03":
		return failDown
	}
	return failOther
}
