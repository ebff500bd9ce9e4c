// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
)

// The kinds that Error.Code can have. A server may add kinds: treat an unknown
// one by Error.Status.
const (
	CodeInvalid      = "invalid"      // 400: change the request
	CodeUnauthorized = "unauthorized" // 401: no API key
	CodeForbidden    = "forbidden"    // 403: not a valid API key
	CodeNotFound     = "not_found"    // 404: unknown here
	CodeConflict     = "conflict"     // 409: clashes with the present state
	CodeGone         = "gone"         // 410: existed, was stopped
	CodeExhausted    = "exhausted"    // 429: a limit is reached
	CodeInternal     = "internal"     // 500: failure of the server
	CodeUnavailable  = "unavailable"  // 503: the server cannot do it now
	CodeUnsupported  = "unsupported"  // 501: not in this release
)

// Error is a refusal or a failure that the server reported.
type Error struct {
	Status  int    // HTTP status, for instance 404
	Code    string // kind, one of the Code constants
	Message string // what went wrong, as the server says it
	Hint    string // what to do about it; may be empty
}

// Error gives the server's message.
func (e *Error) Error() string { return e.Message }

// IsNotFound tells whether err is the server's answer that the thing is unknown.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// ErrorBody is the JSON body of every answer that is not a success.
type ErrorBody struct {
	Error  string `json:"error" doc:"What went wrong"`
	Code   string `json:"code,omitempty" doc:"Kind of the error"`
	Hint   string `json:"hint,omitempty" doc:"What to do about it"`
	Status int    `json:"status,omitempty" doc:"HTTP status; only in error events of a stream, whose own status is 200"`
}

// maxErrorBody bounds what is read of an error answer.
const maxErrorBody = 64 << 10

// errorFrom makes the Error of an answer. A body that is not ours (a proxy's,
// say) becomes the message as it is.
func errorFrom(resp *http.Response) *Error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := &Error{Status: resp.StatusCode}
	if !e.decode(data) {
		e.Message = strings.TrimSpace(string(data))
	}
	if e.Message == "" {
		e.Message = "server answered " + resp.Status
	}
	return e
}

// decode fills e from an ErrorBody, also from one with a nested message
// ({"error":{"message":…}}), and tells whether data was one.
func (e *Error) decode(data []byte) bool {
	var body struct {
		Error  json.RawMessage
		Code   string
		Hint   string
		Status int
	}
	if json.Unmarshal(data, &body) != nil || len(body.Error) == 0 {
		return false
	}
	if json.Unmarshal(body.Error, &e.Message) != nil {
		var nested struct{ Message string }
		if json.Unmarshal(body.Error, &nested) != nil {
			return false
		}
		e.Message = nested.Message
	}
	e.Code, e.Hint = body.Code, body.Hint
	if e.Status == 0 {
		e.Status = body.Status
	}
	return len(bytes.TrimSpace([]byte(e.Message))) > 0
}
