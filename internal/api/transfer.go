// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"io"
	"net/http"
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

// upload begins to read a request's body. It must be finished.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) *upload {
	return &upload{body: http.MaxBytesReader(w, r.Body, maxTransfer), rc: http.NewResponseController(w)}
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
			Error: "more than 32 GiB at once", Code: client.CodeInvalid}}
	}
	return fault.Wrap(fault.Invalid, u.err, "the upload broke off")
}

// download streams src as the answer. The first bytes are read before the
// status is sent, so that a failure can still be told; after that it can only
// be shown by cutting the connection.
func (s *Server) download(w http.ResponseWriter, r *http.Request, contentType string, src io.Reader) {
	buf := make([]byte, 64<<10)
	n, err := src.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		s.writeError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	for {
		if n > 0 {
			_ = rc.SetWriteDeadline(time.Now().Add(stallTimeout))
			if _, werr := w.Write(buf[:n]); werr != nil {
				panic(http.ErrAbortHandler)
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.log.WarnContext(r.Context(), "download was cut", "request", requestFrom(r.Context()).id, "err", err)
			panic(http.ErrAbortHandler)
		}
		n, err = src.Read(buf)
	}
}
