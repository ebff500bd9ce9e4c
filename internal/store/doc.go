// SPDX-License-Identifier: Apache-2.0

// Package store keeps checkpoints in a bucket, a directory or S3: it makes a
// capture durable at the cost of what is new in it, and gives it back verified.
//
// A checkpoint is an object below ckpt/ (package refs), whose payload is its
// Manifest; that names a table of where each page is: in segments, up to 64 pages
// compressed together, of packs (package format, docs/format.md). A page that
// another checkpoint of the org has is referred to, not stored again.
//
// Invariants:
//   - A checkpoint is visible only when it is complete and durable: packs first,
//     the manifest last.
//   - No byte leaves the store unverified: what comes from the bucket has a
//     BLAKE3 hash, what comes from the local cache a cheap one. A damaged
//     checkpoint is an error that names it (Damaged), never data.
//   - Complete in itself: to open a checkpoint no other one is read.
//   - What this process remembers (index, catalog) is only a hint, and can be lost.
//
// The package knows nothing of engines' formats, sandboxes or rows.
package store
