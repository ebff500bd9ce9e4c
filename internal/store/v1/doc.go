// SPDX-License-Identifier: Apache-2.0

// Package store reads the checkpoints of the first format (docs/format.md): each
// is a directory of whole files. Checkpoints are kept in the page store now; those
// that an earlier release left here are read, listed and deleted.
//
// Write is left for one purpose: the engines of the releases that wrote this
// format know no other, so what they are to restore from the page store is
// unpacked for them.
//
// Invariants:
//   - A checkpoint is visible in a Dir only when it is complete: nothing is
//     written there, and a deletion begins with one rename.
//   - No byte leaves the package unverified: each 64 KiB block has a BLAKE3 hash,
//     checked when it is first read, and a CRC-32C, checked whenever it is read
//     again; the tables have hashes in the manifest, the manifest one of its own.
//   - A damaged checkpoint is an error that names it (Damaged), never data.
//
// The package knows nothing of engines' formats, sandboxes or rows.
package store
