// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"fmt"
	"strings"
)

// The protocol, version 1, on a SOCK_SEQPACKET unix socket. A client sends one
// request at a time and reads one reply:
//
//	request: version(1) op(1) name
//	reply:   version(1) status(1) payload
//
//	op   name         descriptors     payload of the OK reply
//	'P'  the name     1..8 to hold    empty
//	'G'  the name     none            empty, with the descriptors held
//	'L'  after        none            names greater than after, in byte order,
//	                                  joined by '\n'; empty when there are none
//	'D'  the name     none            empty; also when the name is not held
//	'S'  empty        none            empty; then the keeper ends
//
// Descriptors travel by SCM_RIGHTS. The payload of any other status is a text
// for people. A reply to an unknown version has the keeper's own version.
const protocolVersion = 1

// The bounds of the protocol.
const (
	// MaxFiles is the number of descriptors one name may hold.
	MaxFiles = 8
	// MaxName is the length of a name in bytes.
	MaxName = 128
	// MaxDescriptors is the number of descriptors a keeper holds in all.
	MaxDescriptors = 65536

	headerLen  = 2
	maxRequest = headerLen + MaxName
	maxReply   = 32 << 10 // so a page of names holds at least one
)

// op is what a request asks for.
type op byte

const (
	opPut  op = 'P'
	opGet  op = 'G'
	opList op = 'L'
	opDrop op = 'D'
	opStop op = 'S'
)

// status is how a request ended.
type status byte

const (
	statusOK       status = 0
	statusNotFound status = 1 // nothing is held under the name
	statusInvalid  status = 2 // the request is malformed
	statusFull     status = 3 // no room for more descriptors
	statusBusy     status = 4 // stop, while something is held
	statusVersion  status = 5 // a version the keeper does not speak
	statusFailed   status = 6 // the kernel refused
)

type request struct {
	op   op
	name string
}

type reply struct {
	status  status
	payload string
}

// errVersion is a request of another version of the protocol.
var errVersion = errors.New("unknown version of the keeper protocol")

func (r request) encode() []byte {
	return append([]byte{protocolVersion, byte(r.op)}, r.name...)
}

// decodeRequest reads a request that came with files descriptors.
func decodeRequest(b []byte, files int) (request, error) {
	if len(b) < 1 || b[0] != protocolVersion {
		return request{}, errVersion
	}
	if len(b) < headerLen || len(b) > maxRequest {
		return request{}, fmt.Errorf("a request of %d bytes", len(b))
	}
	r := request{op: op(b[1]), name: string(b[headerLen:])}
	minFiles, maxFiles := 0, 0
	switch r.op {
	case opPut:
		minFiles, maxFiles = 1, MaxFiles
	case opGet, opDrop, opList:
	case opStop:
		if r.name != "" {
			return request{}, errors.New("stop takes no name")
		}
	default:
		return request{}, fmt.Errorf("unknown request %q", b[1])
	}
	if files < minFiles || files > maxFiles {
		return request{}, fmt.Errorf("request %q with %d descriptors", b[1], files)
	}
	if r.op == opStop || r.op == opList && r.name == "" {
		return r, nil
	}
	return r, checkName(r.name)
}

// checkName allows printable ASCII without blanks, so that a name can be
// logged and listed as it is.
func checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("a name has 1 to %d characters, not %d", MaxName, len(name))
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' {
			return fmt.Errorf("bad character %q in name", c)
		}
	}
	return nil
}

func (r reply) encode() []byte {
	b := append([]byte{protocolVersion, byte(r.status)}, r.payload...)
	return b[:min(len(b), maxReply)]
}

func decodeReply(b []byte) (reply, error) {
	if len(b) < headerLen || len(b) > maxReply {
		return reply{}, fmt.Errorf("a reply of %d bytes", len(b))
	}
	r := reply{status: status(b[1]), payload: string(b[headerLen:])}
	if b[0] != protocolVersion || r.status == statusVersion {
		return reply{}, errVersion
	}
	return r, nil
}

// encodeNames joins as many of the names as a reply has room for.
func encodeNames(names []string) string {
	size, n := headerLen, 0
	for ; n < len(names) && size+len(names[n])+1 <= maxReply; n++ {
		size += len(names[n]) + 1
	}
	return strings.Join(names[:n], "\n")
}

// decodeNames splits a page of names and checks that they are valid and
// ascend from after, so that paging ends.
func decodeNames(payload, after string) ([]string, error) {
	if payload == "" {
		return nil, nil
	}
	names := strings.Split(payload, "\n")
	for _, name := range names {
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		if name <= after {
			return nil, fmt.Errorf("list: %q after %q", name, after)
		}
		after = name
	}
	return names, nil
}
