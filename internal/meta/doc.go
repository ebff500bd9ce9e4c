// SPDX-License-Identifier: Apache-2.0

// Package meta keeps the metadata of a server: who owns what, what is in which
// state, and by which record a running thing is found again after a restart.
//
// The data lives in SQLite (a file, the default) or in PostgreSQL (shared by
// several servers). One query layer and one set of migrations serve both; where
// the two differ, the difference is in open.go, migrate.go and errors.go.
//
// Invariants:
//
//   - A method that returned without error has made its change durable: on
//     SQLite the commit is synchronised to the disk before it returns.
//   - A row belongs to an org, and every getter that answers for a user takes
//     that org: a foreign id answers exactly like an unknown one. The methods
//     named AnyOrg are for the server's own work.
//   - What must be decided and written as one (names, limits, ids) is decided
//     by the database inside one transaction, never by a read before it.
//   - Times are UTC with microseconds.
//   - A plain API key is never stored.
//
// The package knows the rows and nothing of what they stand for: it imports
// no other package of the project but fault and durable, and starts, stops and
// deletes nothing but rows.
package meta
