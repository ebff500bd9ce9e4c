// SPDX-License-Identifier: Apache-2.0

// Package wire is the protocol between the server and the agent of a sandbox:
// packets, operations and their arguments. docs/agent-protocol.md describes it
// in full.
//
// One packet of a SOCK_SEQPACKET socket is one message: a type byte, a call id
// (uint32, little endian) and a payload of at most MaxPayload bytes. Control
// payloads are JSON whose unknown fields are ignored; bulk payloads are binary
// and carry the offset of their first byte.
//
// Invariants: a field or an operation, once released, keeps its meaning for
// ever, because an agent frozen in an old checkpoint speaks the protocol of its
// day; things are only added. Nothing here trusts its input: decoders bound
// what they accept and never keep a reference to the packet unless they say so.
//
// The package imports the standard library only and knows neither side.
package wire
