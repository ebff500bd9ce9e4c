// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/opencomputer/oc/client"
)

const (
	eventStream = "text/event-stream"
	// keepAlive is how often a silent event stream shows that it is alive.
	keepAlive = 15 * time.Second
	// countEvery is how often a count is sent at most.
	countEvery = 200 * time.Millisecond
)

// reporter takes the progress of a call. Its functions may be called at any
// time, by any goroutine.
type reporter struct {
	line  func(string)            // a step, for a person
	count func(done, total int64) // bytes; a total of 0 is not known; nil: nobody wants to know
}

// work is a call that may report progress and gives what to answer with.
type work func(ctx context.Context, report reporter) (any, error)

// progressResponse runs work as the answer of a typed operation.
func (s *Server) progressResponse(status int, do work) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(c huma.Context) {
		r, w := humago.Unwrap(c)
		s.serveProgress(w, r, status, do)
	}}
}

// serveProgress runs work. A client that accepts events gets its progress as it
// comes; the stream begins with the first of it, so that what fails or succeeds
// before is a plain answer with a status of its own.
func (s *Server) serveProgress(w http.ResponseWriter, r *http.Request, status int, do work) {
	ev := &events{w: w, rc: http.NewResponseController(w)}
	report := reporter{line: func(string) {}}
	if strings.Contains(r.Header.Get("Accept"), eventStream) {
		report = reporter{line: ev.line, count: ev.count}
	}
	v, err := do(r.Context(), report)
	streaming := ev.finish()
	switch {
	case err != nil && streaming:
		a := s.errorAnswer(r.Context(), err)
		a.body.Status = a.status
		ev.send(client.EventError, a.body)
	case err != nil:
		s.writeError(w, r, err)
	case streaming:
		ev.send(client.EventResult, v)
	default:
		writeJSON(w, status, v)
	}
}

// events writes a stream of server-sent events.
type events struct {
	mu      sync.Mutex // guards the fields, and that one event is written at a time
	w       http.ResponseWriter
	rc      *http.ResponseController
	step    int
	counted time.Time // when the last count was sent
	done    bool
	timer   *time.Timer // nil until the stream has begun
}

// line sends a line of progress.
func (e *events) line(line string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.begun() {
		return
	}
	e.step++
	e.write(client.EventBuildLog, client.BuildLog{Step: e.step, Type: "log", Message: line})
}

// count sends how far the call has come, if that is news: the last count and
// one in a while.
func (e *events) count(done, total int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if done != total && time.Since(e.counted) < countEvery || !e.begun() {
		return
	}
	e.counted = time.Now()
	e.write(client.EventProgress, client.Progress{Done: done, Total: total})
}

// begun begins the stream unless it has; it is false when it has ended. e.mu is
// held.
func (e *events) begun() bool {
	if !e.done && e.timer == nil {
		e.w.Header().Set("Content-Type", eventStream)
		e.w.Header().Set("Cache-Control", "no-store")
		e.w.WriteHeader(http.StatusOK)
		e.timer = time.AfterFunc(keepAlive, e.alive)
	}
	return !e.done
}

// alive sends a comment.
func (e *events) alive() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return
	}
	e.emit(": keepalive\n\n")
	e.timer.Reset(keepAlive)
}

// finish ends the progress; it tells whether the stream has begun.
func (e *events) finish() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done = true
	if e.timer != nil {
		e.timer.Stop()
	}
	return e.timer != nil
}

// send writes the last event.
func (e *events) send(name string, v any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.write(name, v)
}

// write writes an event; e.mu is held.
func (e *events) write(name string, v any) {
	data, err := json.Marshal(v)
	if err != nil { // wire types always encode
		panic(err)
	}
	e.emit(fmt.Sprintf("event: %s\ndata: %s\n\n", name, data))
}

// emit writes to the client within a bound. A failure means that the client has
// gone; then the request's context ends, which ends the work.
func (e *events) emit(text string) {
	_ = e.rc.SetWriteDeadline(time.Now().Add(stallTimeout))
	_, _ = e.w.Write([]byte(text))
	_ = e.rc.Flush()
}

// describeResult documents the answer of an operation that streams.
func (s *Server) describeResult(op *huma.Operation, v any) {
	schema := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeOf(v), true, "")
	op.Responses[fmt.Sprint(op.DefaultStatus)] = &huma.Response{
		Description: op.Summary,
		Content: map[string]*huma.MediaType{
			jsonType:    {Schema: schema},
			eventStream: {Schema: &huma.Schema{Type: huma.TypeString}},
		},
	}
}
