// SPDX-License-Identifier: Apache-2.0

// Package sandbox is the life cycle of sandboxes: it creates, finds, adopts,
// expires and ends them, and it is where every operation on a sandbox takes
// its turn.
//
// A sandbox is a row; what runs is its current generation (type Run). A
// restore in place gives the row another generation, so nothing outside this
// package holds on to one longer than a Lease.
//
// Invariants:
//   - A row exists before the process, keeper entry and directory it accounts
//     for, and disappears after them (DESIGN, invariant 1).
//   - At most one state-changing operation per sandbox at a time (Operate). A
//     second one waits, bounded; a kill cancels the running one and waits for
//     it to have undone itself.
//   - Data-plane calls (Acquire) never see a generation before identity and
//     probe are done, and wait while one generation takes over from another.
//   - Every process that this package started has a watcher; a generation that
//     dies by itself turns its sandbox to state error with the reason.
//   - An engine that runs is not ended because there is no memory, space or store
//     for its state now, nor because its agent is silent: that is tried again.
//
// It knows the engine only through engine.Driver, the guest only through
// agentclient; it does not know HTTP, checkpoints' rows or the store. Package
// checkpoint builds its verbs on Operate, Restore and Replace.
package sandbox
