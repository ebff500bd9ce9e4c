// SPDX-License-Identifier: Apache-2.0

// Package link is the connection between the two processes of a restore: the
// pager, of the server's build, which reads and verifies a checkpoint, and the
// engine helper, of the image's build, which hands its contents to the engine.
// An old helper so never needs to know how a newer store keeps things.
//
// Both have one end of a pair of sockets of packets (unix(7), SOCK_SEQPACKET).
// The helper greets with the highest version of this protocol that it speaks.
// The pager answers with the version that both do, the sizes of the three files
// of the checkpoint, and a memory file, cut into slots of equal length. A
// request names a free slot and a piece of a file; when it is answered, the
// piece is in the slot. All numbers are little-endian.
//
// Invariants:
//   - A packet is understood completely or ends the connection. A request that
//     is understood but wrong is answered with an error.
//   - The pager works on one request per slot at most, and only it can write the
//     memory, whose length nobody can change: what was verified stays so.
//   - When either end is gone, each read under way and each later one fails at
//     once, saying so.
//   - The layout of a greeting and of a refusal never changes.
//
// It knows nothing of the store, the engine, or how fast anything should go.
package link

import "io"

// Version is the highest version of the protocol that this build speaks, and
// the lowest is 1.
const Version = 1

// Source is a file as the pager has it. Reads are verified, and may be made by
// many at once.
type Source interface {
	io.ReaderAt
	Size() int64
}

// Sources are the three files of a checkpoint.
type Sources struct{ State, Meta, Pages Source }

// The three files, in the order of their sizes in a hello.
const (
	fileState = iota
	fileMeta
	filePages
	fileCount
)

// Shape of the memory that this build makes: 16 reads of up to 1 MiB at once.
// What no read has used takes no memory.
const (
	slotCount = 16
	slotBytes = 1 << 20
)

// What a client accepts of another build.
const (
	maxSlots     = 1 << 10
	minSlotBytes = 4 << 10
	maxSlotBytes = 16 << 20
)
