// SPDX-License-Identifier: Apache-2.0

// Package api is the HTTP and WebSocket server: routes, keys, limits, errors.
//
// A [Server] turns requests into calls of the services that [Config] names and
// their answers into the wire types of package client. JSON routes are typed
// operations, from which GET /openapi.json is generated; sockets and streams are
// plain handlers on the same mux.
//
// Invariants:
//
//   - Every route needs an API key, except the health checks, the API
//     description, and the file URLs that carry a signature. What a request may
//     see is what the services show to the key's org: a foreign id answers like
//     an unknown one. The routes of the store as a whole take any key, and name
//     no checkpoint of another org.
//   - An answer that is not a success has the body {"error","code","hint"},
//     whoever found the fault: a service, the router, the decoder, a panic.
//   - Causes, stacks, keys and bodies never reach a client or the log line of a
//     request.
//   - Output of a session is neither lost nor doubled: each attachment follows
//     the agent's (timeline, offset), over in-place restores too, and a client
//     that asks for positions can continue after any break.
//   - Nothing is buffered without a bound: a socket that does not take its data
//     stops the agent's credit, not the server's memory.
//   - Every goroutine ends with its request; [Server.Shutdown] ends the requests
//     that would not end by themselves.
//
// Bounds: 1 MiB of JSON, 64 KiB of headers within 10 s, 64 KiB per socket
// message, 2048 requests and sockets at a time, two minutes without progress on
// any stream, 16 MiB of output of a run, 32 GiB of a file or archive, 1 TiB of an
// exported checkpoint.
//
// The package knows services and agents. It must not import the engine, the
// store, the pager or a database: what it needs of them is in seams.go.
package api
