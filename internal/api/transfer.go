// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

// upload is a streamed request body: bounded in size, and in how long it may
// give nothing.
type upload struct {
	body io.Reader
	rc   *http.ResponseController
	err  error // what went wrong on the client's side
}

// upload begins to read a request's body of at most limit bytes. It must be
// finished.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, limit int64) *upload {
	return &upload{body: http.MaxBytesReader(w, r.Body, limit), rc: http.NewResponseController(w)}
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	_ = u.rc.SetReadDeadline(time.Now().Add(stallTimeout))
	n, err := u.body.Read(p)
	if err != nil {
		// A deadline that is left would end the request while it is worked on.
		u.finish()
		if !errors.Is(err, io.EOF) {
			u.err = err
		}
	}
	return n, err
}

// finish ends the bound in time.
func (u *upload) finish() { _ = u.rc.SetReadDeadline(time.Time{}) }

// explain makes an error that the client is the reason of say so.
func (u *upload) explain(err error) error {
	var tooBig *http.MaxBytesError
	switch {
	case err == nil || u.err == nil:
		return err
	case errors.As(u.err, &tooBig):
		return &answer{status: http.StatusRequestEntityTooLarge, body: client.ErrorBody{
			Error: fmt.Sprintf("more than %d GiB at once", tooBig.Limit>>30), Code: client.CodeInvalid}}
	}
	return fault.Wrap(fault.Invalid, u.err, "the upload broke off")
}

// download streams src as the answer.
func (s *Server) download(w http.ResponseWriter, r *http.Request, contentType string, src io.Reader) {
	out := newStream(w, contentType)
	_, err := io.CopyBuffer(out, src, make([]byte, 64<<10))
	s.endStream(out, r, err)
}

// stream is the body of an answer that is sent as it is made. The status goes
// out with the first bytes, so that a failure before them can still be told.
type stream struct {
	w           http.ResponseWriter
	rc          *http.ResponseController
	contentType string
	expected    atomic.Int64 // bytes that there will be at most, about, if it is set before the first; 0: not known
	begun       bool
	gone        bool // the client took no more
}

func newStream(w http.ResponseWriter, contentType string) *stream {
	return &stream{w: w, rc: http.NewResponseController(w), contentType: contentType}
}

// Write implements io.Writer.
func (b *stream) Write(p []byte) (int, error) {
	b.begin()
	_ = b.rc.SetWriteDeadline(time.Now().Add(stallTimeout))
	n, err := b.w.Write(p)
	b.gone = b.gone || err != nil
	return n, err
}

// begin sends the status.
func (b *stream) begin() {
	if b.begun {
		return
	}
	b.begun = true
	h := b.w.Header()
	h.Set("Content-Type", b.contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	if n := b.expected.Load(); n > 0 {
		h.Set(client.ExpectedBytes, strconv.FormatInt(n, 10))
	}
	b.w.WriteHeader(http.StatusOK)
}

// endStream ends an answer that err, unless nil, has interrupted. Once it has
// begun that can only be shown by cutting the connection: a clean end would say
// that all is there.
func (s *Server) endStream(b *stream, r *http.Request, err error) {
	switch {
	case err == nil && !b.gone:
		b.begin()
	case !b.begun:
		s.writeError(b.w, r, err)
	default:
		if !b.gone {
			s.log.WarnContext(r.Context(), "download was cut", "request", requestFrom(r.Context()).id, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
}
