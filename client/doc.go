// SPDX-License-Identifier: Apache-2.0

// Package client is the Go SDK of OpenComputer and the one place that knows the
// wire types of its HTTP and WebSocket API.
//
// A [Client] calls a server; the structs with json tags are what travels, and
// the server uses the same ones. Spelling follows the published API, which is
// mixed on purpose: sandboxID and sessionID with a sandbox or a session,
// sandboxId and checkpointId with a checkpoint.
//
// Invariants:
//
//   - An answer of the server that is not a success is an [*Error] with the
//     server's own message, kind and hint. Any other error means that the
//     answer never came (connection refused, cut, undecodable).
//   - No call retries, and none has a time limit of its own: the context rules.
//   - Bulk data (files, archives, session output) is streamed, never collected.
//   - What the server sends is bounded in size before it is decoded.
//
// The package imports nothing of the project: whoever has only this package can
// use a server.
package client
