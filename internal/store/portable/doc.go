// SPDX-License-Identifier: Apache-2.0

// Package portable reads and writes the one self-contained file in which a
// checkpoint travels to another machine: its pages with their identities, the
// engine's state, the engine build that can run it and the root image under it
// (docs/portable.md).
//
// Invariants:
//   - It is a stream: neither side seeks, so that a pipe between two machines
//     will do.
//   - What Read gives is what Write was given. A file that was cut short, or of
//     which any bit was altered, is an error, and nothing of it is given away
//     before the hash over all of it was checked.
//   - What is read is hostile: memory and disk space are bounded by what was
//     declared and by the reader's limits, and what was declared is only room
//     to grow, never taken in advance.
//   - After an error or Close nothing is left on the disk.
//
// The package knows nothing of what the manifest and the files mean, nor of
// the store's own format, which changes without this one.
package portable
