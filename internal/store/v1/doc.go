// SPDX-License-Identifier: Apache-2.0

// Package store keeps checkpoints: it makes a capture durable, and gives it
// back verified.
//
// This is the first format: each checkpoint is a directory of whole files
// (docs/format.md), already with the stable identity of every page, so that a
// page store can take its place behind the same face.
//
// Invariants:
//   - A checkpoint is visible in the store only when it is complete and on
//     disk: it is written in a staging directory, its manifest last, and moved
//     into place by one rename; everything is fsynced on the way.
//   - No byte leaves the store unverified: each 64 KiB block has a BLAKE3 hash,
//     checked when it is first read, and a CRC-32C, checked whenever it is read
//     again; the tables have hashes in the manifest, the manifest one of its own.
//   - A damaged checkpoint is an error that names it (Damaged), never data.
//
// The package knows nothing of engines' formats, sandboxes or rows.
package store
