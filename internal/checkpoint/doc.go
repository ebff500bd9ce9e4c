// SPDX-License-Identifier: Apache-2.0

// Package checkpoint is the verbs on checkpoints: create, list, restore, spawn,
// fork, delete, and the lineage between them.
//
// Invariants:
//   - A row is ready only when the store has verified and published the
//     artefact; the row's status is set here and nowhere else. What goes wrong
//     is kept in the row's error message.
//   - Every processing row has a task of this server; those of an earlier
//     server are failed at start.
//   - Retention creates first and trims afterwards; the limit per sandbox is
//     enforced with the insertion of the row.
//   - A restore verifies all of the artefact and proves the replacement before
//     the running generation is touched.
//   - Deleting waits for what is just opening the artefact; what has it open
//     keeps it.
//
// It builds on package sandbox's operations; it does not know HTTP or gVisor.
package checkpoint
