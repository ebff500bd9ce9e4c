// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

// statusOf is the HTTP status of each kind of fault.
func statusOf(k fault.Kind) int {
	switch k {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.Unauthorized:
		return http.StatusUnauthorized
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Gone:
		return http.StatusGone
	case fault.Exhausted:
		return http.StatusTooManyRequests
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// retryAfter is sent with every 503, in seconds.
const retryAfter = "2"

// answer is an error as it is sent. It is also an error, so that a handler can
// return one that no fault stands for.
type answer struct {
	status int
	body   client.ErrorBody
}

// Error gives the message.
func (a *answer) Error() string { return a.body.Error }

// GetStatus gives the HTTP status; the typed API asks for it.
func (a *answer) GetStatus() int { return a.status }

// GetHeaders gives the headers to send; the typed API asks for them.
func (a *answer) GetHeaders() http.Header {
	if a.status != http.StatusServiceUnavailable {
		return nil
	}
	return http.Header{"Retry-After": {retryAfter}}
}

// MarshalJSON encodes the body.
func (a *answer) MarshalJSON() ([]byte, error) { return json.Marshal(a.body) }

// errorAnswer makes the answer for an error, and logs what the client must not
// see.
func (s *Server) errorAnswer(ctx context.Context, err error) *answer {
	var a *answer
	if errors.As(err, &a) {
		return a
	}
	switch {
	case errors.Is(err, context.Canceled):
		// Nobody listens; the status is for the log.
		err = fault.Wrap(fault.Unavailable, err, "the request was given up")
	case errors.Is(err, context.DeadlineExceeded) && !hasFault(err):
		err = fault.Wrap(fault.Unavailable, err, "the operation took too long")
	}
	f := fault.As(err)
	a = &answer{status: statusOf(f.Kind), body: client.ErrorBody{Error: f.Message, Code: string(f.Kind), Hint: f.Hint}}
	info := requestFrom(ctx)
	if a.status >= 500 && f.Err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "request failed",
			slog.String("request", info.id), slog.String("message", f.Message), slog.Any("cause", f.Err))
	}
	if f.Kind == fault.Internal && f.Hint == "" {
		a.body.Hint = "the server's log says more under request " + info.id
	}
	return a
}

// hasFault tells whether somebody has already said what the error means.
func hasFault(err error) bool {
	var f *fault.Fault
	return errors.As(err, &f)
}

// writeError answers with an error.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	a := s.errorAnswer(r.Context(), err)
	for k, v := range a.GetHeaders() {
		w.Header()[k] = v
	}
	writeJSON(w, a.status, a.body)
}

// writeJSON answers with a JSON value.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The only error here is a client that has gone.
	_ = json.NewEncoder(w).Encode(v)
}
