// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

const (
	signedPrefix   = "oc-file-1" // of what is signed, so that the key signs nothing else
	defaultExpiry  = 3600        // seconds
	maxExpiry      = 86400
	signedDownload = "download"
	signedUpload   = "upload"
)

func (s *Server) signedRoutes(files string) {
	s.signRoute(files, signedDownload)
	s.signRoute(files, signedUpload)
	s.open("GET "+files+"/download", s.signed(signedDownload, s.sendFile))
	s.open("PUT "+files+"/upload", s.signed(signedUpload, func(w http.ResponseWriter, r *http.Request, orgID, path string) {
		s.receiveFile(w, r, orgID, path, 0)
	}))
}

type signInput struct {
	ID   string `path:"id" doc:"Sandbox id"`
	Body client.SignedURLRequest
}

// signRoute mounts the operation that makes URLs for op.
func (s *Server) signRoute(files, op string) {
	typed(s, "POST "+files+"/"+op+"-url", "Make a URL that works without an API key", http.StatusOK,
		func(ctx context.Context, in *signInput) (client.SignedURL, error) { return s.sign(ctx, in, op) })
}

func (s *Server) sign(ctx context.Context, in *signInput, op string) (client.SignedURL, error) {
	if _, err := s.cfg.Sandboxes.Get(ctx, orgOf(ctx), in.ID); err != nil {
		return client.SignedURL{}, err
	}
	if err := checkPath(in.Body.Path); err != nil {
		return client.SignedURL{}, err
	}
	seconds := in.Body.ExpiresIn
	if seconds == 0 {
		seconds = defaultExpiry
	}
	if seconds < 1 || seconds > maxExpiry {
		return client.SignedURL{}, fault.New(fault.Invalid, "expiresIn must be between 1 and %d seconds", maxExpiry)
	}
	expires := time.Now().Add(time.Duration(seconds) * time.Second).UTC().Truncate(time.Second)
	g := grant{orgID: orgOf(ctx), sandboxID: in.ID, path: in.Body.Path, op: op, expires: expires.Unix()}
	q := url.Values{
		"path": {g.path}, "org": {g.orgID}, "expires": {strconv.FormatInt(g.expires, 10)},
		"signature": {g.signature(s.cfg.SigningKey)},
	}
	return client.SignedURL{
		URL:       requestFrom(ctx).origin + "/api/sandboxes/" + url.PathEscape(in.ID) + "/files/" + op + "?" + q.Encode(),
		ExpiresAt: expires,
	}, nil
}

// grant is what a signature allows.
type grant struct {
	orgID, sandboxID, path, op string
	expires                    int64 // Unix seconds
}

// signature signs the grant. Quoting keeps what a path holds apart from the rest.
func (g grant) signature(key []byte) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%q\n%q\n%q\n%s\n%d", signedPrefix, g.orgID, g.sandboxID, g.path, g.op, g.expires)
	return hex.EncodeToString(mac.Sum(nil))
}

// signed lets a request through that carries a valid signature for op.
func (s *Server) signed(op string, h func(w http.ResponseWriter, r *http.Request, orgID, path string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		expires, err := strconv.ParseInt(q.Get("expires"), 10, 64)
		if err != nil || q.Get("path") == "" || len(q.Get("signature")) != 2*sha256.Size {
			s.writeError(w, r, fault.New(fault.Invalid, "malformed file URL"))
			return
		}
		g := grant{orgID: q.Get("org"), sandboxID: r.PathValue("id"), path: q.Get("path"), op: op, expires: expires}
		if !hmac.Equal([]byte(g.signature(s.cfg.SigningKey)), []byte(q.Get("signature"))) {
			s.writeError(w, r, fault.New(fault.Forbidden, "the signature of the file URL is not valid"))
			return
		}
		if time.Now().Unix() >= expires {
			s.writeError(w, r, fault.New(fault.Forbidden, "the file URL has expired").WithHint("make a new one"))
			return
		}
		requestFrom(r.Context()).org.ID = g.orgID
		h(w, r, g.orgID, g.path)
	}
}
