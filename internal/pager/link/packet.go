// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/opencomputer/oc/internal/fault"
)

// Kinds of packets: the first byte.
const (
	kindGreeting = 1 + iota // helper to pager, the first
	kindHello               // pager to helper, the first, with the memory file
	kindRefusal             // pager to helper, the last
	kindRequest             // helper to pager
	kindAnswer              // pager to helper
	kindFailure             // pager to helper
)

// magic begins the first packet of each side, behind the kind.
const magic = "oc-link"

// Lengths of packets, in bytes.
const (
	greetingLen = 1 + len(magic) + 4
	helloLen    = greetingLen + 4 + 4 + 8*fileCount
	requestLen  = 1 + 1 + 2 + 4 + 8 + 8
	answerLen   = 1 + 8 + 4
	maxText     = 2 << 10 // of one text of an error
	errorTexts  = 4
	maxPacket   = 1 + 8 + errorTexts*(2+maxText)
)

var order = binary.LittleEndian

// errPacket is a packet that is not understood.
var errPacket = errors.New("link: the other side sent what is not understood")

// greeting is the highest version that the helper speaks.
type greeting struct{ version uint32 }

func (g greeting) encode() []byte {
	b := append(make([]byte, 0, greetingLen), kindGreeting)
	b = append(b, magic...)
	return order.AppendUint32(b, g.version)
}

func decodeGreeting(b []byte) (g greeting, err error) {
	if len(b) != greetingLen || b[0] != kindGreeting || string(b[1:1+len(magic)]) != magic {
		return g, errPacket
	}
	g.version = order.Uint32(b[1+len(magic):])
	if g.version == 0 {
		return g, errPacket
	}
	return g, nil
}

// hello is what the pager has.
type hello struct {
	version   uint32 // spoken from here on
	slots     int
	slotBytes int
	sizes     [fileCount]int64 // of the files, in bytes
}

func (h hello) encode() []byte {
	b := append(make([]byte, 0, helloLen), kindHello)
	b = append(b, magic...)
	b = order.AppendUint32(b, h.version)
	b = order.AppendUint32(b, uint32(h.slots))
	b = order.AppendUint32(b, uint32(h.slotBytes))
	for _, n := range h.sizes {
		b = order.AppendUint64(b, uint64(n))
	}
	return b
}

func decodeHello(b []byte) (h hello, err error) {
	if len(b) != helloLen || b[0] != kindHello || string(b[1:1+len(magic)]) != magic {
		return h, errPacket
	}
	b = b[1+len(magic):]
	h.version = order.Uint32(b)
	slots, size := order.Uint32(b[4:]), order.Uint32(b[8:])
	if h.version < 1 || h.version > Version || slots < 1 || slots > maxSlots || size < minSlotBytes || size > maxSlotBytes {
		return h, errPacket
	}
	h.slots, h.slotBytes = int(slots), int(size)
	for i := range h.sizes {
		n := order.Uint64(b[12+8*i:])
		if n > math.MaxInt64 {
			return h, errPacket
		}
		h.sizes[i] = int64(n)
	}
	return h, nil
}

// request asks for a piece of a file in a slot. Nothing in it is valid because
// it was decoded.
type request struct {
	file   uint8
	slot   uint16
	length uint32
	id     uint64
	offset uint64
}

func (r request) encode() []byte {
	b := append(make([]byte, 0, requestLen), kindRequest, r.file)
	b = order.AppendUint16(b, r.slot)
	b = order.AppendUint32(b, r.length)
	b = order.AppendUint64(b, r.id)
	return order.AppendUint64(b, r.offset)
}

func decodeRequest(b []byte) (r request, err error) {
	if len(b) != requestLen || b[0] != kindRequest {
		return r, errPacket
	}
	return request{
		file: b[1], slot: order.Uint16(b[2:]), length: order.Uint32(b[4:]),
		id: order.Uint64(b[8:]), offset: order.Uint64(b[16:]),
	}, nil
}

// reply answers a request: n bytes are in its slot, or err says why not.
type reply struct {
	id  uint64
	n   uint32
	err error
}

func (r reply) encode() []byte {
	if r.err != nil {
		b := append(make([]byte, 0, maxPacket), kindFailure)
		return appendError(order.AppendUint64(b, r.id), r.err)
	}
	b := append(make([]byte, 0, answerLen), kindAnswer)
	b = order.AppendUint64(b, r.id)
	return order.AppendUint32(b, r.n)
}

func decodeReply(b []byte) (r reply, err error) {
	switch {
	case len(b) == answerLen && b[0] == kindAnswer:
		return reply{id: order.Uint64(b[1:]), n: order.Uint32(b[9:])}, nil
	case len(b) > 9 && b[0] == kindFailure:
		r.id = order.Uint64(b[1:])
		r.err, err = decodeError(b[9:])
		return r, err
	}
	return r, errPacket
}

func encodeRefusal(why error) []byte {
	b := append(make([]byte, 0, maxPacket), kindRefusal)
	return appendError(append(b, magic...), why)
}

// decodeRefusal gives why the pager does not serve. ok tells whether the packet
// is a refusal.
func decodeRefusal(b []byte) (why error, ok bool) { //nolint:revive // the error is the value, not a failure
	if len(b) < 1+len(magic) || b[0] != kindRefusal || string(b[1:1+len(magic)]) != magic {
		return nil, false
	}
	why, err := decodeError(b[1+len(magic):])
	return why, err == nil
}

// appendError adds an error as four texts, each with its length before it: kind,
// message and hint of the fault in it, empty where there is none, and all of it.
func appendError(b []byte, err error) []byte {
	var f fault.Fault
	if found := (*fault.Fault)(nil); errors.As(err, &found) {
		f = *found
	}
	for _, s := range [errorTexts]string{string(f.Kind), f.Message, f.Hint, err.Error()} {
		s = strings.ToValidUTF8(s[:min(len(s), maxText)], "")
		b = order.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

func decodeError(b []byte) (told, err error) {
	var s [errorTexts]string
	for i := range s {
		if len(b) < 2 {
			return nil, errPacket
		}
		n := int(order.Uint16(b))
		if b = b[2:]; n > maxText || n > len(b) {
			return nil, errPacket
		}
		s[i], b = strings.ToValidUTF8(string(b[:n]), ""), b[n:]
	}
	kind, message, hint, text := fault.Kind(s[0]), s[1], s[2], s[3]
	switch {
	case len(b) > 0:
		return nil, errPacket
	case kind == "":
		return fmt.Errorf("the pager: %s", text), nil
	}
	f := &fault.Fault{Kind: kind, Message: message, Hint: hint}
	if text != message {
		f.Err = errors.New(text)
	}
	return f, nil
}
