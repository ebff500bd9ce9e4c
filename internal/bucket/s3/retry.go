// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
)

// The pauses between attempts: each doubles the last.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
)

// repeat makes attempts until one succeeds, one fails for good, or the time is
// over; then it gives the last attempt's error. All requests of this package
// may be repeated: a conditional one that had been carried out is refused.
func repeat(ctx context.Context, limit time.Duration, attempt func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		err := attempt(bounded)
		if last == nil || bounded.Err() == nil {
			last = err // the end of the time tells less than what came before
		}
		if ctx.Err() != nil && err != nil {
			return ctx.Err()
		}
		if err == nil || !passing(err) {
			return err
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2)) // many clients do not come again at once
		select {
		case <-timer.C:
		case <-bounded.Done():
			timer.Stop()
			if err := ctx.Err(); err != nil {
				return err
			}
			return last
		}
	}
}

// passing tells whether an error may be gone the next time.
func passing(err error) bool {
	var refusal minio.ErrorResponse
	if errors.As(err, &refusal) {
		switch refusal.Code {
		case "RequestTimeout", "SlowDown", "Throttling":
			return true
		}
		switch refusal.StatusCode {
		// A conflict is with a request that was being carried out; what a condition
		// refuses is StatusPreconditionFailed.
		case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusConflict:
			return true
		case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusInsufficientStorage:
			return false
		}
		return refusal.StatusCode >= 500
	}
	var untrusted *tls.CertificateVerificationError
	return !errors.As(err, &untrusted) // all else is the network's
}

// newTransport makes connections that fail when nothing has moved on them for a
// quarter of a call's time, so that there is time for other attempts.
func newTransport(timeout time.Duration) *http.Transport {
	stall := timeout / 4
	dialer := net.Dialer{Timeout: stall, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &movingConn{Conn: conn, stall: stall}, nil
		},
		TLSHandshakeTimeout: stall,
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 64, // the pager reads with many at a time
		IdleConnTimeout:     min(time.Minute, stall),
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
		DisableCompression:  true,
	}
}

// movingConn fails when nothing moves for a time. What moves in one direction
// gives time to the other: an answer comes after a long upload.
type movingConn struct {
	net.Conn
	stall time.Duration
}

func (c *movingConn) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *movingConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
