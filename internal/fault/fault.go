// SPDX-License-Identifier: Apache-2.0

// Package fault holds the errors that a person can act on.
//
// A Fault says what went wrong (Message), what kind of wrong it is (Kind, from
// which the API derives its HTTP status and the CLI its exit code) and what to
// do about it (Hint). Everything that crosses the border of the core towards
// the API is a Fault or wraps one; any other error is reported as Internal.
//
// Invariants: Message names the thing concerned and never carries secrets; a
// Fault may wrap a cause, which is logged but not shown to API clients.
//
// The package knows nothing about HTTP, the CLI or any other package.
package fault

import (
	"errors"
	"fmt"
)

// Kind classifies a Fault.
type Kind string

// The kinds and what they mean for the caller.
const (
	Invalid      Kind = "invalid"      // the request is malformed or impossible: change it (HTTP 400)
	Unauthorized Kind = "unauthorized" // no credentials (HTTP 401)
	Forbidden    Kind = "forbidden"    // bad credentials (HTTP 403)
	NotFound     Kind = "not_found"    // unknown, or owned by another org (HTTP 404)
	Conflict     Kind = "conflict"     // clashes with the present state or another operation (HTTP 409)
	Gone         Kind = "gone"         // existed, but was stopped (HTTP 410)
	Exhausted    Kind = "exhausted"    // a limit of the caller is reached (HTTP 429)
	Unavailable  Kind = "unavailable"  // the node cannot do it now: no space, no memory, shutting down (HTTP 503)
	Damaged      Kind = "damaged"      // stored bytes are not what was written (HTTP 500)
	Internal     Kind = "internal"     // our failure (HTTP 500)
)

// Fault is an error with a kind, a message for the user and a hint.
type Fault struct {
	Kind    Kind
	Message string // what happened, naming the thing
	Hint    string // what to do; may be empty
	Err     error  // cause, may be nil; not shown to API clients
}

// Error gives the message, and the cause where there is one.
func (f *Fault) Error() string {
	if f.Err != nil {
		return f.Message + ": " + f.Err.Error()
	}
	return f.Message
}

// Unwrap gives the cause.
func (f *Fault) Unwrap() error { return f.Err }

// New makes a Fault with a formatted message.
func New(kind Kind, format string, args ...any) *Fault {
	return &Fault{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes a Fault around a cause.
func Wrap(kind Kind, err error, format string, args ...any) *Fault {
	return &Fault{Kind: kind, Message: fmt.Sprintf(format, args...), Err: err}
}

// WithHint returns a copy of f that says what to do.
func (f *Fault) WithHint(format string, args ...any) *Fault {
	g := *f
	g.Hint = fmt.Sprintf(format, args...)
	return &g
}

// As gives the first Fault in err's chain, or an Internal one around err. It
// gives nil for nil.
func As(err error) *Fault {
	if err == nil {
		return nil
	}
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return &Fault{Kind: Internal, Message: "internal error", Err: err}
}

// Is tells whether err is, or wraps, a Fault of the kind.
func Is(err error, kind Kind) bool {
	var f *Fault
	return errors.As(err, &f) && f.Kind == kind
}
