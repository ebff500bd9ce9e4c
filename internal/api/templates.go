// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

// nameInput is the input of an operation on a template.
type nameInput struct {
	Name string `path:"name" doc:"Template name"`
}

// templateRoutes mounts the templates, and reading and deleting them under the
// name that released clients use.
func (s *Server) templateRoutes() {
	for _, what := range []string{"templates", "snapshots"} {
		typed(s, "GET /api/"+what, "The templates", http.StatusOK, s.listTemplates)
		typed(s, "GET /api/"+what+"/{name}", "A template", http.StatusOK, s.getTemplate)
		empty(s, "DELETE /api/"+what+"/{name}", "Delete a template that nothing needs", s.deleteTemplate)
	}
	op := s.operation("POST /api/templates/{name}/build", "Build a template; with Accept: text/event-stream also its progress", http.StatusCreated)
	s.describeResult(&op, client.Template{})
	huma.Register(s.api, op, s.buildTemplate)
	s.raw("POST /api/templates/{name}/import", "Make a template of the archive that is the body", http.StatusCreated, s.importTemplate)
}

func (s *Server) listTemplates(ctx context.Context, _ *none) ([]client.Template, error) {
	all, err := s.cfg.Templates.List(ctx, orgOf(ctx))
	return each(all, templateOut), err
}

func (s *Server) getTemplate(ctx context.Context, in *nameInput) (client.Template, error) {
	all, err := s.cfg.Templates.List(ctx, orgOf(ctx))
	if err != nil {
		return client.Template{}, err
	}
	for _, t := range all {
		if t.Name == in.Name || t.ID == in.Name {
			return templateOut(t), nil
		}
	}
	return client.Template{}, fault.New(fault.NotFound, "template not found: %s", in.Name).
		WithHint("oc template list shows the templates")
}

func (s *Server) deleteTemplate(ctx context.Context, in *nameInput) error {
	return s.cfg.Templates.Delete(ctx, orgOf(ctx), in.Name)
}

func (s *Server) buildTemplate(_ context.Context, in *nameInput) (*huma.StreamResponse, error) {
	return s.progressResponse(http.StatusCreated, func(ctx context.Context, report reporter) (any, error) {
		t, err := s.cfg.Templates.Build(ctx, orgOf(ctx), in.Name, report.line)
		return templateOut(t), err
	}), nil
}

func (s *Server) importTemplate(w http.ResponseWriter, r *http.Request) {
	// Progress goes out while the archive still comes in.
	_ = http.NewResponseController(w).EnableFullDuplex()
	archive := s.upload(w, r, maxTransfer)
	defer archive.finish()
	s.serveProgress(w, r, http.StatusCreated, func(ctx context.Context, report reporter) (any, error) {
		t, err := s.cfg.Templates.Import(ctx, orgOf(ctx), r.PathValue("name"), archive, report.line)
		return templateOut(t), archive.explain(err)
	})
}
