// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// request is what is known about a request beside itself.
type request struct {
	id     string // for the log
	origin string // scheme and host by which the client reached the server
	org    meta.Org
	key    meta.Key
}

type requestKey struct{}

// requestFrom gives what is known about the request of a context; it is never
// nil.
func requestFrom(ctx context.Context) *request {
	if info, ok := ctx.Value(requestKey{}).(*request); ok {
		return info
	}
	return &request{}
}

// orgOf gives the id of the org whose key the request has.
func orgOf(ctx context.Context) string { return requestFrom(ctx).org.ID }

// response notes what was answered.
type response struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status and bounds how long the answer may take; streams
// move that bound as they go. An earlier answer's bound on the connection is
// replaced.
func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(stallTimeout))
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write notes an implicit status.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP bounds, logs and dispatches a request, and survives its panic.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	info := &request{id: newID(4), origin: "http://" + r.Host}
	if r.TLS != nil {
		info.origin = "https://" + r.Host
	}
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, info))
	r = withPlainPath(r)
	rw := &response{ResponseWriter: w}
	rw.Header().Set("X-Request-Id", info.id)
	start := time.Now()
	defer func() {
		// What is left of the body is read away before the next request.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(headerTimeout))
		s.logRequest(r, info, rw.status, time.Since(start))
	}()
	defer s.recoverPanic(rw, r)

	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.writeError(rw, r, fault.New(fault.Unavailable, "too many requests at a time").
			WithHint("the server serves %d at once; try again", maxRequests))
		return
	}
	if h, pattern := s.mux.Handler(r); pattern == "" {
		s.noRoute(rw, r, h)
		return
	}
	s.mux.ServeHTTP(rw, r)
}

// recoverPanic answers for a handler that panicked. An answer that has begun
// cannot be taken back: the connection is cut, which the client notices.
func (s *Server) recoverPanic(w *response, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		s.log.ErrorContext(r.Context(), "handler panicked",
			"request", requestFrom(r.Context()).id, "panic", p, "stack", string(debug.Stack()))
		if w.status == 0 {
			s.writeError(w, r, fault.New(fault.Internal, "internal error"))
			return
		}
	}
	panic(http.ErrAbortHandler)
}

// noRoute answers a request that no route takes. The mux's own handler knows
// whether only the method is wrong.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request, h http.Handler) {
	probe := &headerOnly{header: http.Header{}}
	h.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		a := s.errorAnswer(r.Context(), fault.New(fault.Invalid, "%s is not allowed here", r.Method).
			WithHint("allowed: %s", probe.header.Get("Allow")))
		writeJSON(w, http.StatusMethodNotAllowed, a.body)
		return
	}
	s.writeError(w, r, fault.New(fault.NotFound, "no such route: %s %s", r.Method, r.URL.Path).
		WithHint("GET /openapi.json lists the routes"))
}

// headerOnly is a ResponseWriter that forgets the body.
type headerOnly struct {
	header http.Header
	status int
}

func (w *headerOnly) Header() http.Header         { return w.header }
func (w *headerOnly) Write(p []byte) (int, error) { return len(p), nil }
func (w *headerOnly) WriteHeader(status int)      { w.status = status }

// logRequest writes the request's line: the route and never the URL, whose query
// may hold a key or a signature.
func (s *Server) logRequest(r *http.Request, info *request, status int, d time.Duration) {
	level := slog.LevelInfo
	switch {
	case status >= 500:
		level = slog.LevelWarn
	case strings.HasSuffix(r.Pattern, " /health") || strings.HasSuffix(r.Pattern, "z"):
		level = slog.LevelDebug
	}
	s.log.LogAttrs(r.Context(), level, "request",
		slog.String("request", info.id), slog.String("method", r.Method), slog.String("route", r.Pattern),
		slog.Int("status", status), slog.Duration("duration", d), slog.String("org", info.org.ID))
}

// authenticated lets a request with a valid API key through to h.
func (s *Server) authenticated(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		plain := presentedKey(r)
		if plain == "" {
			s.writeError(w, r, fault.New(fault.Unauthorized, "missing API key").
				WithHint("send it as the header X-API-Key; oc key create makes one"))
			return
		}
		org, key, err := s.cfg.Keys.LookupKey(r.Context(), plain)
		if err != nil {
			s.writeError(w, r, err)
			return
		}
		info := requestFrom(r.Context())
		info.org, info.key = org, key
		h(w, r)
	}
}

// presentedKey gives the API key that a request brings. A browser cannot set
// headers on a socket: there the query may carry it.
func presentedKey(r *http.Request) string {
	if k := r.Header.Get("X-API-Key"); k != "" {
		return k
	}
	if scheme, k, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(k)
	}
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return r.URL.Query().Get("api_key")
	}
	return ""
}

// plainPath maps the addresses whose second element is a word where others have
// a sandbox's id to addresses of their own: the mux cannot tell
// /sandboxes/from-checkpoint/{checkpoint} from /sandboxes/{id}/exec.
func plainPath(path string) string {
	for _, word := range []string{"from-checkpoint", "checkpoints"} {
		if rest, ok := strings.CutPrefix(path, "/api/sandboxes/"+word+"/"); ok {
			return "/api/sandboxes-" + word + "/" + rest
		}
	}
	return path
}

// withPlainPath gives the request under its plainPath.
func withPlainPath(r *http.Request) *http.Request {
	p, raw := plainPath(r.URL.Path), plainPath(r.URL.RawPath)
	if p == r.URL.Path && raw == r.URL.RawPath {
		return r
	}
	r2, u := *r, *r.URL
	u.Path, u.RawPath = p, raw
	r2.URL = &u
	return &r2
}

// newID gives n random bytes as hex.
func newID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
