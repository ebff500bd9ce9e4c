// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Bounds of the whole server; the package comment lists them.
const (
	maxRequests    = 2048
	maxHeaderBytes = 64 << 10
	maxBody        = 1 << 20
	maxTransfer    = 32 << 30
	maxImport      = 1 << 40
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	bodyTimeout    = 30 * time.Second // for a whole JSON body
	stallTimeout   = 2 * time.Minute  // without progress, on streams
)

// Config is what a Server is made of. Everything but Storage and Ready is
// required.
type Config struct {
	Sandboxes   Sandboxes
	Checkpoints Checkpoints
	Storage     Storage // nil: its routes answer that they are not available
	Templates   Templates
	Keys        Keys
	Log         *slog.Logger

	// SigningKey authenticates file URLs: at least 32 random bytes that stay the
	// same over restarts.
	SigningKey []byte
	// MaxCPUs and MaxMemoryMB bound what a sandbox may ask for: the host's.
	MaxCPUs, MaxMemoryMB int
	// Version, APIURL and DataDir are shown by GET /api/status.
	Version, APIURL, DataDir string
	// Ready, unless nil, says why the server cannot serve yet; GET /readyz.
	Ready func() error
}

// Server serves the API. It is an http.Handler.
type Server struct {
	cfg    Config
	log    *slog.Logger
	mux    *http.ServeMux
	api    huma.API
	spec   []byte        // the API description, JSON
	slots  chan struct{} // one per request being served
	stdins stdinTable

	stopping context.Context // ends when Shutdown begins
	stop     context.CancelFunc
	mu       sync.Mutex // guards adding to streams
	streams  sync.WaitGroup
}

// New makes a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Sandboxes == nil || cfg.Checkpoints == nil || cfg.Templates == nil || cfg.Keys == nil || cfg.Log == nil {
		return nil, errors.New("api: a service is missing in the configuration")
	}
	if len(cfg.SigningKey) < 32 {
		return nil, errors.New("api: the signing key has less than 32 bytes")
	}
	s := &Server{cfg: cfg, log: cfg.Log, mux: http.NewServeMux(), slots: make(chan struct{}, maxRequests)}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.api = newTypedAPI(s)
	s.nodeRoutes()
	s.sandboxRoutes()
	s.execRoutes()
	s.ptyRoutes()
	s.fileRoutes()
	s.checkpointRoutes()
	s.storageRoutes()
	s.templateRoutes()
	s.unsupportedRoutes()
	var err error
	if s.spec, err = json.Marshal(s.api.OpenAPI()); err != nil {
		return nil, fmt.Errorf("api: describe the routes: %w", err)
	}
	return s, nil
}

// HTTPServer makes an http.Server for s with the bounds of the package. The
// caller serves, and ends it: first Shutdown of s, then of the http.Server.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// Shutdown closes all sockets, telling their clients to come again, refuses new
// ones and returns when they are closed or ctx ends. Other requests are the
// http.Server's to wait for.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stop()
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.streams.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("api: sockets are still open: %w", ctx.Err())
	}
}

// beginStream counts a socket; it tells false when the server is stopping.
func (s *Server) beginStream() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping.Err() != nil {
		return false
	}
	s.streams.Add(1)
	return true
}
