// SPDX-License-Identifier: Apache-2.0

// Package refs decides what in a bucket is alive: it owns the objects below
// ckpt/, which are commit point, lease and pin in one, and sweeps away the packs
// that none of them needs (docs/garbage-collection.md).
//
// Any number of servers write, read, delete and sweep in one bucket at the same
// time. None of them trusts another's clock, and each may stall for days, crash
// or lose an answer between any two requests.
//
// Invariants:
//   - Every pack that a committed object lists exists.
//   - What Commit has returned nil for stays committed until somebody deletes it;
//     what it has said to have failed is never committed later.
//   - Every pack that a reader's lease covers exists until the lease is revoked.
//   - An object that cannot be understood, or is of a newer version, stops a
//     sweep before it has deleted anything.
//   - Whatever is left behind by a crash is found: by any sweep when its writer had
//     come to its own object, by an audit in any case.
//
// The package knows nothing of what is in packs or payloads, and of the bucket
// only what package bucket promises.
package refs
