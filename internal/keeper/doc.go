// SPDX-License-Identifier: Apache-2.0

// Package keeper is the tiny process that holds open descriptors by name while
// the process that uses them restarts, and the client of it.
//
// A server puts the host ends of its sandboxes' sockets here. When it dies,
// the kernel sees descriptors that are still open: nobody gets an end of file
// and what is queued stays queued. The next server gets them back by name.
//
// The keeper must not need an upgrade, ever: a new one could take over only by
// what this package exists to avoid. So it does put, get, list, drop and stop,
// knows nothing of what it holds, never reads from or writes to it, and the
// protocol is closed (protocol.go).
//
// Invariants:
//
//   - What a Put has acknowledged is held until a Drop, a Put under the same
//     name, or the end of the process. The end of a client, in whatever state,
//     drops nothing.
//   - A message is one packet: there are no half messages. A malformed one is
//     answered with an error and changes nothing.
//   - Only root, or the keeper's own user, is served.
//   - Names, descriptors, clients, message sizes and the time a reply may take
//     are bounded.
//   - Descriptors in a message that is refused are closed.
//
// The package imports nothing of the project but fault.
package keeper
