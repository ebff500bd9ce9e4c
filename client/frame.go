// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coder/websocket"
)

// The first byte of each binary message on an exec socket says what the rest
// is. The frames from FrameCloseStdin on are additions to the published
// protocol; a client that does not ask for positions is never sent one.
const (
	FrameStdin      byte = 0x00 // to the server: bytes for the process, behind those before
	FrameStdout     byte = 0x01 // to the client: bytes of the process
	FrameStderr     byte = 0x02 // to the client: bytes of the process
	FrameExit       byte = 0x03 // to the client: exit code, int32 big-endian, and 1 if the timeout passed; once, last
	FrameScrollback byte = 0x04 // to the client: end of what was there before; once per attach
	FrameCloseStdin byte = 0x05 // to the server: end of the process' input
	FramePosition   byte = 0x06 // to the client: Position of the next output byte, JSON
	FrameStdinAt    byte = 0x07 // to the server: uint64 big-endian offset, bytes for the process
	FrameStdinAck   byte = 0x08 // to the client: uint64 big-endian, input taken so far; answers each FrameStdinAt
)

const (
	maxPosition   = 4096
	exitFrameSize = 5
	stdinAtHeader = 9
)

// How a socket is closed by the server when the session did not just end
// (which is 1000).
const (
	// CloseSessionLost: the sandbox was restored to a checkpoint that does not
	// know the session.
	CloseSessionLost websocket.StatusCode = 4001
	// CloseSandboxEnded: the sandbox was stopped or died.
	CloseSandboxEnded websocket.StatusCode = 4010
	// CloseRetry: the server cannot go on now (it stops, or the client took
	// nothing for too long); attaching again from the last position loses nothing.
	CloseRetry websocket.StatusCode = 1012
)

// Position is a place in the output of a session. Offsets count the bytes of
// stdout and stderr together, within a timeline: a restore or spawn starts a new
// one at the offset where the checkpoint was.
type Position struct {
	Timeline string `json:"timeline"`
	Offset   int64  `json:"offset"`
	// Stdin is how many bytes of input the session has taken so far.
	Stdin int64 `json:"stdin"`
}

// errFrame says that a message on an exec socket is not of the protocol.
var errFrame = errors.New("malformed message on the exec socket")

// exitTimedOut follows the code in the message of a process that was killed
// because its timeout passed. Clients that do not know it read the code alone.
const exitTimedOut = 1

// ExitFrame makes the message of an exit code; timedOut says that the process was
// killed because its timeout passed.
func ExitFrame(code int, timedOut bool) []byte {
	msg := binary.BigEndian.AppendUint32([]byte{FrameExit}, uint32(int32(code)))
	if timedOut {
		msg = append(msg, exitTimedOut)
	}
	return msg
}

// PositionFrame makes the message of a position.
func PositionFrame(p Position) []byte {
	data, err := json.Marshal(p)
	if err != nil { // a struct of two numbers and a string
		panic(err)
	}
	return append([]byte{FramePosition}, data...)
}

// StdinAtFrame makes the message of input at an offset.
func StdinAtFrame(off int64, p []byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{FrameStdinAt}, uint64(off)), p...)
}

// ParseStdinAt takes the message of input at an offset apart. The bytes are
// msg's.
func ParseStdinAt(msg []byte) (off int64, p []byte, err error) {
	off, err = parseOffset(msg)
	if err != nil {
		return 0, nil, err
	}
	return off, msg[stdinAtHeader:], nil
}

// StdinAckFrame makes the message of how much input was taken.
func StdinAckFrame(taken int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{FrameStdinAck}, uint64(taken))
}

// parseOffset reads the number behind the first byte.
func parseOffset(msg []byte) (int64, error) {
	if len(msg) < stdinAtHeader {
		return 0, errFrame
	}
	off := int64(binary.BigEndian.Uint64(msg[1:]))
	if off < 0 {
		return 0, errFrame
	}
	return off, nil
}

// decodeFrame makes an event of a message from the server. Its Data is msg's.
func decodeFrame(msg []byte) (Event, error) {
	if len(msg) == 0 {
		return Event{}, errFrame
	}
	body := msg[1:]
	switch msg[0] {
	case FrameStdout:
		return Event{Kind: EventStdout, Data: body}, nil
	case FrameStderr:
		return Event{Kind: EventStderr, Data: body}, nil
	case FrameScrollback:
		return Event{Kind: EventScrollback}, nil
	case FrameExit:
		if len(msg) < exitFrameSize {
			return Event{}, errFrame
		}
		return Event{
			Kind: EventExit, ExitCode: int(int32(binary.BigEndian.Uint32(body))),
			TimedOut: len(msg) > exitFrameSize && msg[exitFrameSize] == exitTimedOut,
		}, nil
	case FramePosition:
		var p Position
		if len(body) > maxPosition || json.Unmarshal(body, &p) != nil || p.Offset < 0 || p.Stdin < 0 {
			return Event{}, errFrame
		}
		return Event{Kind: EventPosition, Position: p}, nil
	case FrameStdinAck:
		taken, err := parseOffset(msg)
		return Event{Kind: EventStdinAck, Position: Position{Stdin: taken}}, err
	}
	return Event{}, fmt.Errorf("%w: type 0x%02x", errFrame, msg[0])
}
