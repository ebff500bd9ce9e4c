// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

const (
	maxListed   = 200 // sandboxes in one answer
	minMemoryMB = 128
	baseName    = "base" // the template of a sandbox that names none
)

// idInput is the input of an operation on a sandbox.
type idInput struct {
	ID string `path:"id" doc:"Sandbox id"`
}

func (s *Server) sandboxRoutes() {
	op := s.operation("POST /api/sandboxes", "Create a sandbox; with Accept: text/event-stream also its progress", http.StatusCreated)
	s.describeResult(&op, client.Sandbox{})
	huma.Register(s.api, op, s.createSandbox)
	typed(s, "GET /api/sandboxes", "Sandboxes, newest first", http.StatusOK, s.listSandboxes)
	typed(s, "GET /api/sandboxes/{id}", "A sandbox", http.StatusOK, s.getSandbox)
	empty(s, "DELETE /api/sandboxes/{id}", "End a sandbox; its checkpoints stay", s.killSandbox)
	empty(s, "POST /api/sandboxes/{id}/timeout", "Change the rolling idle timeout", s.setTimeout)
}

// createInput is what a create may say. The fields behind the SDK's are known
// from the published API and refused, not ignored: who asks for a protected
// preview must not get an open one.
type createInput struct {
	Body struct {
		client.CreateSandboxRequest
		Snapshot    string `json:"snapshot,omitempty" doc:"Same as templateID"`
		Image       any    `json:"image,omitempty" doc:"Not available in this release"`
		SecretStore string `json:"secretStore,omitempty" doc:"Not available in this release"`
		PreviewAuth any    `json:"previewAuth,omitempty" doc:"Not available in this release"`
		Webhooks    []any  `json:"webhooks,omitempty" doc:"Not available in this release"`
	}
}

func (s *Server) createSandbox(ctx context.Context, in *createInput) (*huma.StreamResponse, error) {
	b := &in.Body
	for what, asked := range map[string]bool{
		"image": b.Image != nil, "secretStore": b.SecretStore != "",
		"previewAuth": b.PreviewAuth != nil, "webhooks": len(b.Webhooks) > 0,
	} {
		if asked {
			return nil, unsupported(what)
		}
	}
	if err := s.checkShape(b.CPUCount, b.MemoryMB, b.DiskMB, b.Timeout); err != nil {
		return nil, s.errorAnswer(ctx, err)
	}
	template, err := s.templateName(ctx, first(b.TemplateID, b.Template, b.Snapshot))
	if err != nil {
		return nil, s.errorAnswer(ctx, err)
	}
	req := sandbox.CreateRequest{
		Template: template, Name: first(b.Name, b.Alias),
		CPUs: b.CPUCount, MemoryMB: b.MemoryMB, DiskMB: b.DiskMB, TimeoutSec: b.Timeout,
		Envs: b.Envs, Metadata: b.Metadata,
	}
	return s.progressResponse(http.StatusCreated, func(ctx context.Context, report reporter) (any, error) {
		req.Progress = report.line
		sb, err := s.cfg.Sandboxes.Create(ctx, orgOf(ctx), req)
		return sandboxOut(sb), err
	}), nil
}

// checkShape refuses what no sandbox can have; 0 is always the default.
func (s *Server) checkShape(cpus, memoryMB, diskMB, timeout int) error {
	switch {
	case cpus < 0 || cpus > s.cfg.MaxCPUs:
		return fault.New(fault.Invalid, "cpuCount must be between 1 and %d", s.cfg.MaxCPUs)
	case memoryMB != 0 && (memoryMB < minMemoryMB || memoryMB > s.cfg.MaxMemoryMB):
		return fault.New(fault.Invalid, "memoryMB must be between %d and %d", minMemoryMB, s.cfg.MaxMemoryMB)
	case diskMB < 0:
		return fault.New(fault.Invalid, "diskMB must not be negative")
	}
	return checkTimeout(timeout)
}

// maxTimeout is the longest timeout in seconds: a year.
const maxTimeout = 365 * 24 * 3600

// checkTimeout refuses a negative timeout, and one that is too long.
func checkTimeout(seconds int) error {
	if seconds < 0 || seconds > maxTimeout {
		return fault.New(fault.Invalid, "timeout must be from 0 (never) to %d seconds, not %d", maxTimeout, seconds)
	}
	return nil
}

// templateName finds out which template a name means. Some names stand for base
// in the published API, unless there is a template of that name.
func (s *Server) templateName(ctx context.Context, name string) (string, error) {
	switch name {
	case "", baseName:
		return baseName, nil
	case "default", "ubuntu", "python", "node":
	default:
		return name, nil
	}
	all, err := s.cfg.Templates.List(ctx, orgOf(ctx))
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(all, func(t meta.Template) bool { return t.Name == name }) {
		return name, nil
	}
	return baseName, nil
}

type listInput struct {
	Status string `query:"status" doc:"Only those of this status"`
	All    string `query:"all" doc:"1 = stopped ones too"`
}

func (s *Server) listSandboxes(ctx context.Context, in *listInput) ([]client.Sandbox, error) {
	all, _ := strconv.ParseBool(in.All)
	return s.listed(ctx, all || in.Status != "", in.Status, maxListed)
}

// listed gives the sandboxes of a status ("" = any), at most limit.
func (s *Server) listed(ctx context.Context, all bool, status string, limit int) ([]client.Sandbox, error) {
	sbs, err := s.cfg.Sandboxes.List(ctx, orgOf(ctx), all)
	if err != nil {
		return nil, err
	}
	if status != "" {
		sbs = slices.DeleteFunc(sbs, func(sb meta.Sandbox) bool { return string(sb.State) != status })
	}
	if len(sbs) > min(limit, maxListed) {
		sbs = sbs[:min(limit, maxListed)]
	}
	return each(sbs, sandboxOut), nil
}

func (s *Server) getSandbox(ctx context.Context, in *idInput) (client.Sandbox, error) {
	sb, err := s.cfg.Sandboxes.Get(ctx, orgOf(ctx), in.ID)
	return sandboxOut(sb), err
}

func (s *Server) killSandbox(ctx context.Context, in *idInput) error {
	return s.cfg.Sandboxes.Kill(ctx, orgOf(ctx), in.ID)
}

type timeoutInput struct {
	ID   string `path:"id" doc:"Sandbox id"`
	Body client.TimeoutRequest
}

func (s *Server) setTimeout(ctx context.Context, in *timeoutInput) error {
	if err := checkTimeout(in.Body.Timeout); err != nil {
		return err
	}
	return s.cfg.Sandboxes.SetTimeout(ctx, orgOf(ctx), in.ID, in.Body.Timeout)
}

// first gives the first string that is not empty.
func first(ss ...string) string {
	for _, v := range ss {
		if v != "" {
			return v
		}
	}
	return ""
}

// number parses a query parameter that is a number from 0; "" is the default.
func number(name, value string, def int64) (int64, error) {
	if value == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 {
		return 0, fault.New(fault.Invalid, "%s must be a number from 0, not %q", name, value)
	}
	return n, nil
}
