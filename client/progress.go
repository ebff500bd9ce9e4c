// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// BuildLog is the data of a build_log event: progress of a long call.
type BuildLog struct {
	Step    int    `json:"step"`
	Type    string `json:"type"`
	Message string `json:"message"`
}

// Progress is the data of a progress event: how far a long call has come.
type Progress struct {
	Done  int64 `json:"done" doc:"Bytes"`
	Total int64 `json:"total,omitempty" doc:"Bytes in all; 0 = not known"`
}

// The names of the events of a call with progress: any number of build_log and
// progress, then exactly one of result (data: what the call returns) and error
// (data: ErrorBody).
const (
	EventBuildLog = "build_log"
	EventProgress = "progress"
	EventResult   = "result"
	EventError    = "error"
)

// maxEvent bounds one line of an event stream.
const maxEvent = 4 << 20

// eventStream is the media type of a call with progress.
const eventStream = "text/event-stream"

// watcher is given the progress of a call. Any of its functions may be nil.
type watcher struct {
	line  func(string)            // steps, for a person
	count func(done, total int64) // bytes
}

// event passes an event of progress on, if it is one.
func (w watcher) event(name string, data []byte) {
	switch name {
	case EventBuildLog:
		var log BuildLog
		if json.Unmarshal(data, &log) == nil && w.line != nil {
			w.line(log.Message)
		}
	case EventProgress:
		var p Progress
		if json.Unmarshal(data, &p) == nil && w.count != nil {
			w.count(p.Done, p.Total)
		}
	}
}

// progressCall posts a JSON request, passes the progress on and returns the
// result.
func progressCall[T any](ctx context.Context, c *Client, path string, in any, w watcher) (out T, err error) {
	data, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("encode request: %w", err)
	}
	h := header{"Accept": eventStream, "Content-Type": "application/json"}
	resp, err := c.send(ctx, "POST", path, h, bytes.NewReader(data))
	if err != nil {
		return out, err
	}
	return out, progressResult(resp, w, &out)
}

// progressResult reads the answer of a call with progress, which is an event
// stream or, from a server that had nothing to report, plain JSON.
func progressResult(resp *http.Response, w watcher, out any) error {
	defer resp.Body.Close()
	if mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mt != eventStream {
		return decode(resp.Body, out)
	}
	done := errors.New("done")
	err := readEvents(resp.Body, func(name string, data []byte) error {
		switch name {
		case EventResult:
			if err := decode(bytes.NewReader(data), out); err != nil {
				return err
			}
			return done
		case EventError:
			e := &Error{}
			if !e.decode(data) {
				e.Message = string(data)
			}
			if e.Status == 0 {
				e.Status = http.StatusInternalServerError
			}
			return e
		}
		w.event(name, data)
		return nil
	})
	switch {
	case errors.Is(err, done):
		return nil
	case err == nil:
		return fmt.Errorf("the server ended the progress stream without a result: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// readEvents parses a stream of server-sent events and calls f for each one,
// until the end or an error. Comments and unknown fields are passed over.
func readEvents(r io.Reader, f func(name string, data []byte) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxEvent)
	var name string
	var data []byte
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			if name != "" || len(data) > 0 {
				if err := f(name, data); err != nil {
					return err
				}
			}
			name, data = "", nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			name = value
		case "data":
			if len(data) > 0 {
				data = append(data, '\n')
			}
			if len(data)+len(value) > maxEvent {
				return fmt.Errorf("event of the server is larger than %d bytes", maxEvent)
			}
			data = append(data, value...)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("progress stream: %w", err)
	}
	return nil
}
