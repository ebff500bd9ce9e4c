// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Protocol versions. Two sides can talk if each one's Version is at least the
// other's MinVersion.
const (
	Version    = 2 // 2 added exec.run
	MinVersion = 1
)

// Sizes, in bytes.
const (
	HeaderSize = 5                       // type and call id
	MaxPayload = 64 << 10                // of any packet
	MaxPacket  = HeaderSize + MaxPayload // what a receive buffer must hold
	MaxChunk   = 32 << 10                // of user data in one Data or Output packet

	// Window is the credit that each direction of each call starts with, and so
	// the most that a receiver has to hold for it.
	Window = 256 << 10

	// minCost is what the smallest bulk packet costs, so that a window also
	// bounds the number of packets.
	minCost = 256
)

// Type says what a packet is.
type Type byte

// The packet types. "host" is the server's side.
const (
	Hello     Type = 1  // host to agent: ends everything of an earlier peer
	HelloAck  Type = 2  // agent to host: answers the Hello with the same nonce
	Request   Type = 3  // host to agent: begins a call
	Accept    Type = 4  // agent to host: a streaming call was accepted; JSON result
	Reply     Type = 5  // agent to host: ends a call; JSON ReplyBody
	Data      Type = 6  // both: uint64 offset, bytes
	Output    Type = 7  // agent to host: stream byte, uint64 offset, bytes
	ReplayEnd Type = 8  // agent to host: uint64 offset; the backlog has been sent
	End       Type = 9  // host to agent: no more Data of this call
	Credit    Type = 10 // both: uint32, more may be sent
	Cancel    Type = 11 // host to agent: give the call up; a Reply still follows
)

// Stream tags output with where it came from.
type Stream byte

// The streams of a session. A terminal has only Stdout.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// ErrMalformed is what every decoder's error wraps.
var ErrMalformed = errors.New("malformed packet")

// Packet is one message. Payload refers to the buffer it was split from.
type Packet struct {
	Type    Type
	ID      uint32
	Payload []byte
}

// Split takes a received packet apart.
func Split(b []byte) (Packet, error) {
	if len(b) < HeaderSize || len(b) > MaxPacket {
		return Packet{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	return Packet{Type(b[0]), binary.LittleEndian.Uint32(b[1:]), b[HeaderSize:]}, nil
}

// AppendHeader starts a packet in b.
func AppendHeader(b []byte, t Type, id uint32) []byte {
	return binary.LittleEndian.AppendUint32(append(b, byte(t)), id)
}

// AppendData appends a whole Data packet.
func AppendData(b []byte, id uint32, off int64, p []byte) []byte {
	b = AppendHeader(b, Data, id)
	return append(binary.LittleEndian.AppendUint64(b, uint64(off)), p...)
}

// AppendOutputHeader appends an Output packet up to where its bytes belong.
func AppendOutputHeader(b []byte, id uint32, s Stream, off int64) []byte {
	b = append(AppendHeader(b, Output, id), byte(s))
	return binary.LittleEndian.AppendUint64(b, uint64(off))
}

// AppendReplayEnd appends a whole ReplayEnd packet.
func AppendReplayEnd(b []byte, id uint32, off int64) []byte {
	return binary.LittleEndian.AppendUint64(AppendHeader(b, ReplayEnd, id), uint64(off))
}

// AppendCredit appends a whole Credit packet.
func AppendCredit(b []byte, id uint32, n int) []byte {
	return binary.LittleEndian.AppendUint32(AppendHeader(b, Credit, id), uint32(n))
}

// Marshal makes a whole packet with a JSON payload. The error is about v only:
// it cannot be encoded, or is larger than MaxPayload.
func Marshal(t Type, id uint32, v any) ([]byte, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(p) > MaxPayload {
		return nil, fmt.Errorf("message of %d bytes exceeds the limit of %d", len(p), MaxPayload)
	}
	return append(AppendHeader(make([]byte, 0, HeaderSize+len(p)), t, id), p...), nil
}

// Unmarshal decodes a JSON payload.
func Unmarshal(p []byte, v any) error {
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// ParseData takes a Data payload apart. The bytes are not copied; they are
// never empty.
func ParseData(p []byte) (off int64, b []byte, err error) {
	if off, err = parseOffset(p); err != nil {
		return 0, nil, err
	}
	return off, p[8:], checkChunk(p[8:])
}

// ParseOutput takes an Output payload apart. The bytes are not copied; they are
// never empty.
func ParseOutput(p []byte) (s Stream, off int64, b []byte, err error) {
	if len(p) < 9 {
		return 0, 0, nil, fmt.Errorf("%w: output of %d bytes", ErrMalformed, len(p))
	}
	if s = Stream(p[0]); s != Stdout && s != Stderr {
		return 0, 0, nil, fmt.Errorf("%w: stream %d", ErrMalformed, s)
	}
	if off, err = parseOffset(p[1:]); err != nil {
		return 0, 0, nil, err
	}
	return s, off, p[9:], checkChunk(p[9:])
}

// ParseReplayEnd decodes a ReplayEnd payload.
func ParseReplayEnd(p []byte) (off int64, err error) { return parseOffset(p) }

// ParseCredit decodes a Credit payload: how many more bytes may be sent, at
// most Window.
func ParseCredit(p []byte) (int, error) {
	if len(p) < 4 {
		return 0, fmt.Errorf("%w: credit of %d bytes", ErrMalformed, len(p))
	}
	n := binary.LittleEndian.Uint32(p)
	if n > Window {
		return 0, fmt.Errorf("%w: credit of %d", ErrMalformed, n)
	}
	return int(n), nil
}

// Cost is how much credit a bulk packet with n bytes of user data uses up.
func Cost(n int) int { return max(n, minCost) }

// Fit is how many of n bytes may be sent in one packet with the credit at hand;
// 0 means: wait for more.
func Fit(n, credit int) int {
	if credit < minCost {
		return 0
	}
	return min(n, credit, MaxChunk)
}

func parseOffset(p []byte) (int64, error) {
	if len(p) < 8 {
		return 0, fmt.Errorf("%w: no offset", ErrMalformed)
	}
	off := int64(binary.LittleEndian.Uint64(p))
	if off < 0 {
		return 0, fmt.Errorf("%w: offset beyond 2^63", ErrMalformed)
	}
	return off, nil
}

func checkChunk(b []byte) error {
	if len(b) == 0 || len(b) > MaxChunk {
		return fmt.Errorf("%w: %d bytes of data", ErrMalformed, len(b))
	}
	return nil
}
