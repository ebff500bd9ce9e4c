// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

// jsonType is the only media type of typed operations.
const jsonType = "application/json"

// newTypedAPI makes the registry of typed operations. The library fills in the
// fields of an input struct itself, not those of structs embedded in it.
//
// Bodies are tolerant as the published clients need it: a missing one is {},
// unknown keys and the content type are ignored. Values are checked by the
// handlers, whose words say more than a schema's.
func newTypedAPI(s *Server) huma.API {
	format := huma.Format{
		Marshal:   func(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) },
		Unmarshal: unmarshal,
	}
	cfg := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "OpenComputer", Version: s.cfg.Version},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"key": {Type: "apiKey", In: "header", Name: "X-API-Key"},
				},
			},
		},
		Formats:       map[string]huma.Format{jsonType: format, "json": format}, // also for +json
		DefaultFormat: jsonType,
		Transformers:  []huma.Transformer{ownError},
	}
	cfg.AllowAdditionalPropertiesByDefault = true
	cfg.FieldsOptionalByDefault = true
	return huma.NewAPI(cfg, adapter{s})
}

// ownError turns an error that the library found into one of ours.
func ownError(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	body := client.ErrorBody{Error: m.Detail, Code: client.CodeInvalid}
	if len(m.Errors) > 0 {
		body.Error = m.Errors[0].Message
		if loc := m.Errors[0].Location; loc != "" && loc != "body" {
			body.Error = loc + ": " + body.Error
		}
	}
	return body, nil
}

// unmarshal decodes a body; its errors are for the client.
func unmarshal(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	var te *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &te) && te.Field != "":
		return fmt.Errorf("%s must be %s, not %s", strings.TrimPrefix(te.Field, "Body."), jsonName(te.Type), te.Value)
	case errors.As(err, &te):
		return fmt.Errorf("the body must be a JSON object, not %s", te.Value)
	}
	return errors.New("the body is not valid JSON")
}

// jsonName says in words what JSON a Go type is made of.
func jsonName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "an array"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return "an integer"
}

// adapter mounts typed operations on the server's mux.
type adapter struct{ s *Server }

// Handle mounts an operation.
func (a adapter) Handle(op *huma.Operation, h func(huma.Context)) {
	a.s.handle(op, func(w http.ResponseWriter, r *http.Request) {
		if op.RequestBody != nil {
			if err := bufferBody(w, r); err != nil {
				a.s.writeError(w, r, err)
				return
			}
		}
		h(tolerant{humago.NewContext(op, r, w)})
	})
}

// ServeHTTP belongs to the interface; requests come through the Server.
func (a adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.s.ServeHTTP(w, r) }

// bufferBody reads the whole JSON body within its bounds, and clears the
// deadline: one that passes while the handler works would end the request.
func bufferBody(w http.ResponseWriter, r *http.Request) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // test recorders have none
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = rc.SetReadDeadline(time.Time{})
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return &answer{status: http.StatusRequestEntityTooLarge, body: client.ErrorBody{
			Error: fmt.Sprintf("the body is larger than %d bytes", maxBody), Code: client.CodeInvalid}}
	case err != nil:
		return fault.Wrap(fault.Invalid, err, "the body could not be read")
	}
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte("{}")
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	return nil
}

// tolerant is a context that passes the library's own habits through a filter:
// 422 becomes 400, its error media type ours, and any content type is JSON.
type tolerant struct{ operationContext }

// operationContext is huma.Context under a name that its method Context does not
// clash with when it is embedded.
type operationContext = huma.Context

// Unwrap gives the context beneath.
func (c tolerant) Unwrap() huma.Context { return c.operationContext }

// Header gives a request header.
func (c tolerant) Header(name string) string {
	if strings.EqualFold(name, "Content-Type") {
		return jsonType
	}
	return c.operationContext.Header(name)
}

// SetHeader sets a response header.
func (c tolerant) SetHeader(name, value string) {
	if strings.HasSuffix(value, "problem+json") {
		value = jsonType
	}
	c.operationContext.SetHeader(name, value)
}

// SetStatus sends the status.
func (c tolerant) SetStatus(status int) {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	c.operationContext.SetStatus(status)
}

// public marks an operation that needs no API key.
const public = "public"

// handle mounts h at an operation's address, behind the check of the API key.
func (s *Server) handle(op *huma.Operation, h http.HandlerFunc) {
	if op.Metadata[public] == nil {
		h = s.authenticated(h)
	}
	s.mux.HandleFunc(op.Method+" "+plainPath(op.Path), h)
}

// operation describes one; what is "POST /api/x".
func (s *Server) operation(what, summary string, status int) huma.Operation {
	method, path, _ := strings.Cut(what, " ")
	schema := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[client.ErrorBody](), true, "")
	return huma.Operation{
		Method: method, Path: path, Summary: summary, DefaultStatus: status,
		OperationID: operationID(method, path),
		Security:    []map[string][]string{{"key": {}}},
		Responses: map[string]*huma.Response{"default": {
			Description: "Error", Content: map[string]*huma.MediaType{jsonType: {Schema: schema}},
		}},
		SkipValidateBody: true, BodyReadTimeout: -1, MaxBodyBytes: maxBody,
	}
}

// operationID makes a name such as post-sandboxes-id-exec.
func operationID(method, path string) string {
	clean := strings.NewReplacer("/api/", "/", "{", "", "}", "", ".", "-").Replace(path)
	return strings.ToLower(method) + strings.ReplaceAll(clean, "/", "-")
}

// body is the output of an operation that answers with T.
type body[T any] struct{ Body T }

// typed mounts an operation that takes I, a struct of parameters and perhaps a
// Body, and answers with T.
func typed[I, T any](s *Server, what, summary string, status int, f func(context.Context, *I) (T, error)) {
	huma.Register(s.api, s.operation(what, summary, status), func(ctx context.Context, in *I) (*body[T], error) {
		v, err := f(ctx, in)
		if err != nil {
			return nil, s.errorAnswer(ctx, err)
		}
		return &body[T]{v}, nil
	})
}

// empty mounts an operation that answers 204.
func empty[I any](s *Server, what, summary string, f func(context.Context, *I) error) {
	huma.Register(s.api, s.operation(what, summary, http.StatusNoContent), func(ctx context.Context, in *I) (*struct{}, error) {
		if err := f(ctx, in); err != nil {
			return nil, s.errorAnswer(ctx, err)
		}
		return nil, nil
	})
}

// raw mounts a plain handler and describes it in words.
func (s *Server) raw(what, summary string, status int, h http.HandlerFunc) {
	op := s.operation(what, summary, status)
	op.Responses[fmt.Sprint(status)] = &huma.Response{Description: summary}
	for _, part := range strings.Split(op.Path, "/") {
		if strings.HasPrefix(part, "{") {
			op.Parameters = append(op.Parameters, &huma.Param{
				Name: strings.Trim(part, "{}"), In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
		}
	}
	s.api.OpenAPI().AddOperation(&op)
	s.handle(&op, h)
}

// open mounts a plain handler that needs no API key, without a description.
func (s *Server) open(what string, h http.HandlerFunc) {
	method, path, _ := strings.Cut(what, " ")
	s.handle(&huma.Operation{Method: method, Path: path, Metadata: map[string]any{public: true}}, h)
}
