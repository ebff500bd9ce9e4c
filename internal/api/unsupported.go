// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/http"
	"strings"

	"github.com/opencomputer/oc/client"
)

// unsupported says that something of the published API is not in this release.
func unsupported(what string) *answer {
	return &answer{status: http.StatusNotImplemented, body: client.ErrorBody{
		Error: what + " is not available in this release", Code: client.CodeUnsupported,
	}}
}

// unsupportedRoutes mounts what the published clients may call and this release
// does not do, so that they get an answer with a reason. Each line is a feature
// and its addresses; those below /api/sandboxes/{id} know the sandbox first.
func (s *Server) unsupportedRoutes() {
	const sb = "/api/sandboxes/{id}"
	for feature, addresses := range map[string][]string{
		"hibernation":                  {"POST " + sb + "/hibernate", "POST " + sb + "/wake"},
		"reboot":                       {"POST " + sb + "/reboot", "POST " + sb + "/power-cycle"},
		"scaling":                      {"POST " + sb + "/scale", "PUT " + sb + "/limits", "GET " + sb + "/autoscale", "PUT " + sb + "/autoscale", "GET " + sb + "/scaling-lock", "PUT " + sb + "/scaling-lock"},
		"allowed-hosts":                {"GET " + sb + "/allowed-hosts"},
		"migration":                    {"POST " + sb + "/migrate"},
		"token refresh":                {"POST " + sb + "/token/refresh"},
		"tagging":                      {"GET " + sb + "/tags", "PUT " + sb + "/tags", "GET /api/tags"},
		"usage accounting":             {"GET " + sb + "/usage", "GET /api/usage"},
		"preview":                      {"GET " + sb + "/preview", "POST " + sb + "/preview", "POST " + sb + "/preview/rotate", "DELETE " + sb + "/preview/{port}"},
		"mounting":                     {"GET " + sb + "/mounts", "POST " + sb + "/mounts", "DELETE " + sb + "/mounts"},
		"log streaming":                {"GET " + sb + "/logs"},
		"the in-sandbox agent session": {"GET " + sb + "/agent", "POST " + sb + "/agent"},
		"publishing": {
			"POST /api/sandboxes/checkpoints/{checkpoint}/publish", "POST /api/sandboxes/checkpoints/{checkpoint}/unpublish",
			"POST /api/snapshots/{name}/publish", "POST /api/snapshots/{name}/unpublish",
		},
		"patching": {
			"GET /api/sandboxes/checkpoints/{checkpoint}/patches", "POST /api/sandboxes/checkpoints/{checkpoint}/patches",
			"DELETE /api/sandboxes/checkpoints/{checkpoint}/patches/{patch}",
		},
		"image building": {"POST /api/snapshots", "POST /api/templates", "GET /api/images"},
		"secret storage": {"GET /api/secret-stores", "POST /api/secret-stores", "/api/secret-stores/{rest...}"},
		"webhook":        {"GET /api/webhooks", "POST /api/webhooks", "/api/webhooks/{rest...}"},
	} {
		for _, a := range addresses {
			s.mux.HandleFunc(patternOf(a), s.authenticated(s.unsupportedRoute(feature)))
		}
	}
	// A login by browser needs an https address that a local server does not have.
	for _, a := range []string{"POST /auth/cli/device", "POST /auth/cli/device/exchange"} {
		s.open(a, func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusServiceUnavailable, client.ErrorBody{
				Error: "cli_login_unavailable", Code: client.CodeUnsupported,
				Hint: "use an API key: oc config set api-key KEY",
			})
		})
	}
}

// patternOf makes the mux pattern of an address with or without a method.
func patternOf(address string) string {
	method, path, ok := strings.Cut(address, " ")
	if !ok {
		return address
	}
	return method + " " + plainPath(path)
}

// unsupportedRoute answers for a feature that is not there; of what belongs to
// another org it says, like every route, that it is unknown.
func (s *Server) unsupportedRoute(feature string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var err error
		if id := r.PathValue("id"); id != "" {
			_, err = s.cfg.Sandboxes.Get(r.Context(), orgOf(r.Context()), id)
		} else if id := r.PathValue("checkpoint"); id != "" {
			_, err = s.cfg.Checkpoints.Get(r.Context(), orgOf(r.Context()), id)
		}
		if err == nil {
			err = unsupported(feature)
		}
		s.writeError(w, r, err)
	}
}
