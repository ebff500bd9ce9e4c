// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/bucket"
)

// State is what an object is now. The only ways are writing → committed →
// deleting, writing → revoked and reading → revoked; a reader's object may also
// just go.
type State string

// The states.
const (
	Writing   State = "writing"   // a writer's claim; it pins its bases and declares its blobs
	Committed State = "committed" // a checkpoint
	Deleting  State = "deleting"  // deleted; its packs are freed by a sweep, and then it goes
	Revoked   State = "revoked"   // a claim that ended without a commit; goes like a deleted one
	Reading   State = "reading"   // a reader's claim; it pins what is read
)

// Version is that of the objects which this package writes.
const Version = 1

// Limits of an object; what goes beyond is refused when written and when read.
const (
	MaxPacks  = 1 << 17
	MaxPins   = 1 << 10
	maxHeader = 32 << 20
)

var (
	// ErrDamaged says that an object is not what this package writes.
	ErrDamaged = errors.New("refs: damaged object")
	// ErrNewer says that an object was written by a later release.
	ErrNewer = errors.New("refs: object of a newer version")
)

// Object is one object below ckpt/.
type Object struct {
	ID      string
	State   State
	Expiry  time.Time // of a claim: from then on anybody may revoke it. Otherwise zero
	Pins    []string  // of a claim: ids whose packs must stay
	Packs   []string  // keys; own and foreign of a checkpoint, in Commit's order; of a writer those declared
	Payload []byte    // of a checkpoint: the caller's bytes

	token string // of the claim that made the object; kept through all states
}

// header is the first line of an object, in this order and without spaces.
type header struct {
	Version int      `json:"version"`
	State   State    `json:"state"`
	Token   string   `json:"token"`
	Nonce   string   `json:"nonce"`            // fresh in each body, so that no ETag ever comes back
	Expiry  int64    `json:"expiry,omitempty"` // Unix milliseconds
	Pins    []string `json:"pins,omitempty"`
	Packs   []string `json:"packs,omitempty"`
	Payload int      `json:"payload,omitempty"` // its length
	Sum     string   `json:"sum"`               // BLAKE3-256 of the id, this line with "" here, and the payload
}

// encode gives the body of an object, with a nonce of its own.
func (l *Log) encode(o *Object) ([]byte, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("refs: %s%s: %w", Prefix, o.ID, err)
	}
	nonce, err := l.random()
	if err != nil {
		return nil, err
	}
	h := header{Version: Version, State: o.State, Token: o.token, Nonce: nonce, Pins: o.Pins, Packs: o.Packs, Payload: len(o.Payload)}
	if !o.Expiry.IsZero() {
		h.Expiry = o.Expiry.UnixMilli()
	}
	line, err := h.seal(o.ID, o.Payload)
	if err != nil {
		return nil, err
	}
	if len(line) > maxHeader || len(line)+1+len(o.Payload) > bucket.MaxObject {
		return nil, fmt.Errorf("refs: %s%s: %d packs and %d bytes of payload are too much for one object", Prefix, o.ID, len(o.Packs), len(o.Payload))
	}
	return append(append(line, '\n'), o.Payload...), nil
}

// seal gives the line with its sum.
func (h *header) seal(id string, payload []byte) ([]byte, error) {
	h.Sum = ""
	line, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("refs: header: %w", err)
	}
	return splice(id, line, payload), nil
}

// splice puts the sum into a line whose last value is "".
func splice(id string, line, payload []byte) []byte {
	sum := hash.Hash(blake3.New())
	sum.Write([]byte(id))
	sum.Write(line)
	sum.Write(payload)
	end := len(line) - len(`"}`)
	return append(hex.AppendEncode(line[:end:end], sum.Sum(nil)), `"}`...)
}

// decode takes only what encode could have written. The object's payload is a
// part of body.
func decode(id string, body []byte) (*Object, error) {
	fail := func(kind error, format string, args ...any) (*Object, error) {
		return nil, fmt.Errorf("%w: %s%s: %s", kind, Prefix, id, fmt.Sprintf(format, args...))
	}
	if !ValidID(id) {
		return fail(ErrDamaged, "its name is not an id")
	}
	n := bytes.IndexByte(body[:min(len(body), maxHeader+1)], '\n')
	if n < 0 {
		return fail(ErrDamaged, "no header")
	}
	line, payload := body[:n], body[n+1:]
	var v struct{ Version int }
	if err := json.Unmarshal(line, &v); err != nil {
		return fail(ErrDamaged, "header: %v", err)
	}
	if v.Version > Version {
		return fail(ErrNewer, "version %d, known is %d", v.Version, Version)
	}
	var h header
	if err := json.Unmarshal(line, &h); err != nil {
		return fail(ErrDamaged, "header: %v", err)
	}
	if h.Version != Version || !isHex(h.Token) || !isHex(h.Nonce) || h.Payload != len(payload) || h.Expiry < 0 {
		return fail(ErrDamaged, "header of version %d with %d bytes of payload, there are %d", h.Version, h.Payload, len(payload))
	}
	// One spelling of each header: nothing unknown, nothing twice, and the sum is right.
	if again, err := h.seal(id, payload); err != nil || !bytes.Equal(again, line) {
		return fail(ErrDamaged, "the header does not have its sum or is spelled differently")
	}
	o := &Object{ID: id, State: h.State, Pins: h.Pins, Packs: h.Packs, Payload: payload, token: h.Token}
	if h.Expiry != 0 {
		o.Expiry = time.UnixMilli(h.Expiry).UTC()
	}
	if err := o.check(); err != nil {
		return fail(ErrDamaged, "%v", err)
	}
	return o, nil
}

// check tells what an object may not hold in its state.
func (o *Object) check() error {
	claim := o.State == Writing || o.State == Reading
	switch o.State {
	case Writing, Committed, Deleting, Revoked, Reading:
	default:
		return fmt.Errorf("unknown state %q", o.State)
	}
	switch {
	case claim != (!o.Expiry.IsZero() && o.Expiry.UnixMilli() > 0):
		return fmt.Errorf("a %s object with expiry %v", o.State, o.Expiry)
	case len(o.Pins) > 0 && !claim, o.State == Reading && len(o.Pins) != 1, len(o.Pins) > MaxPins:
		return fmt.Errorf("a %s object with %d pins", o.State, len(o.Pins))
	case len(o.Packs) > 0 && o.State == Reading, len(o.Packs) > MaxPacks:
		return fmt.Errorf("a %s object with %d packs", o.State, len(o.Packs))
	case len(o.Payload) > 0 && o.State != Committed:
		return fmt.Errorf("a %s object with a payload", o.State)
	}
	for _, p := range o.Pins {
		if !ValidID(p) {
			return fmt.Errorf("pin %q is not an id", p)
		}
	}
	seen := make(map[string]bool, len(o.Packs))
	for _, p := range o.Packs {
		owner, ok := Owner(p)
		if !ok || seen[p] {
			return fmt.Errorf("%q is not the key of a pack, or is there twice", p)
		}
		if owner != o.ID && (o.State == Writing || o.State == Revoked) {
			return fmt.Errorf("%s is declared by another than its owner", p)
		}
		seen[p] = true
	}
	return nil
}
