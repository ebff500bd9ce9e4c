// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"os"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
)

// worker is the node in the list that dashboards ask for.
type worker struct {
	WorkerID string `json:"workerID"`
	Region   string `json:"region"`
	Status   string `json:"status"`
	Current  int    `json:"current" doc:"Running sandboxes of the org"`
}

// none is the input of an operation without any.
type none struct{}

func (s *Server) nodeRoutes() {
	s.open("GET /health", s.health)
	s.open("GET /healthz", s.health)
	s.open("GET /readyz", s.ready)
	s.open("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", jsonType)
		_, _ = w.Write(s.spec)
	})
	typed(s, "GET /api/status", "What the server is and how much the org has", http.StatusOK, s.status)
	typed(s, "GET /api/whoami", "Who the API key belongs to", http.StatusOK, s.whoami)
	typed(s, "GET /api/workers", "The nodes", http.StatusOK, s.workers)
	typed(s, "GET /api/sessions", "Sandboxes of any status, newest first", http.StatusOK, s.sessions)
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, client.Health{Status: "ok", Version: s.cfg.Version})
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if s.stopping.Err() != nil {
		s.writeError(w, r, fault.New(fault.Unavailable, "the server is stopping"))
		return
	}
	if s.cfg.Ready != nil {
		if err := s.cfg.Ready(); err != nil {
			s.writeError(w, r, fault.Wrap(fault.Unavailable, err, "the server is not ready yet"))
			return
		}
	}
	s.health(w, r)
}

func (s *Server) status(ctx context.Context, _ *none) (client.Status, error) {
	out := client.Status{PID: os.Getpid(), Version: s.cfg.Version, APIURL: s.cfg.APIURL, DataDir: s.cfg.DataDir}
	running, err := s.cfg.Sandboxes.List(ctx, orgOf(ctx), false)
	if err != nil {
		return out, err
	}
	nodes, err := s.cfg.Checkpoints.Tree(ctx, orgOf(ctx), "")
	if err != nil {
		return out, err
	}
	templates, err := s.cfg.Templates.List(ctx, orgOf(ctx))
	if err != nil {
		return out, err
	}
	out.Counts = client.Counts{Sandboxes: len(running), Templates: len(templates)}
	out.Pool.Hits, out.Pool.Misses, out.Pool.Ready = s.cfg.Sandboxes.PoolStats()
	for _, n := range nodes {
		if n.Kind == checkpoint.NodeCheckpoint {
			out.Counts.Checkpoints++
		}
	}
	return out, nil
}

func (s *Server) whoami(ctx context.Context, _ *none) (client.WhoAmI, error) {
	info := requestFrom(ctx)
	return client.WhoAmI{OrgID: info.org.ID, OrgName: info.org.Name, UserID: info.key.ID}, nil
}

func (s *Server) workers(ctx context.Context, _ *none) ([]worker, error) {
	running, err := s.cfg.Sandboxes.List(ctx, orgOf(ctx), false)
	if err != nil {
		return nil, err
	}
	return []worker{{WorkerID: workerID, Region: region, Status: "ready", Current: len(running)}}, nil
}

type sessionsInput struct {
	Status string `query:"status"`
	Limit  string `query:"limit"`
}

func (s *Server) sessions(ctx context.Context, in *sessionsInput) ([]client.Sandbox, error) {
	limit, err := number("limit", in.Limit, maxListed)
	if err != nil {
		return nil, err
	}
	return s.listed(ctx, true, in.Status, int(limit))
}
