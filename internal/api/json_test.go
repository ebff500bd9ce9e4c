// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

// TestJSON checks status and content of plain requests.
func TestJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, sb := "/api/sandboxes", "/api/sandboxes/"+boxA
	big := `{"name":"` + strings.Repeat("x", maxBody) + `"}`
	for _, c := range []struct {
		method, path, body string
		status             int
		want               []string
	}{
		{"GET", "/health", "", 200, []string{`"status":"ok"`}},
		{"GET", "/healthz", "", 200, nil},
		{"GET", "/readyz", "", 200, nil},
		{"GET", "/openapi.json", "", 200, []string{`"/api/sandboxes/from-checkpoint/{checkpoint}"`, `"/api/sandboxes/{id}/files/tar"`, `"ErrorBody"`}},
		{"GET", "/api/status", "", 200, []string{`"version":"v1"`, `"counts":{"sandboxes":1,"checkpoints":1,"templates":2}`, `"pool":{"hits":3,"misses":1,"ready":2}`}},
		{"GET", "/api/whoami", "", 200, []string{`"org_id":"org-a"`}},
		{"GET", "/api/workers", "", 200, []string{`[{"workerID":"w1"`}},
		{"GET", "/api/sessions?status=stopped&limit=1", "", 200, []string{goneA}},
		{"GET", "/api/sessions?limit=x", "", 400, []string{`limit must be`}},

		{"POST", a, "", 201, []string{`"id":"sb-00000001","sandboxID":"sb-00000001"`, `"templateID":"base","template":"base"`, `"metadata":{}`, `"endAt":"0001-01-01T00:00:00Z"`, `"token":""`}},
		{"POST", a, "  \n", 201, nil},
		{"POST", a, "null", 201, nil},
		{"POST", a, `{"unknown":1,"envs":null,"templateID":"python"}`, 201, []string{`"template":"base"`}},
		{"POST", a, `{"templateID":"node"}`, 201, []string{`"template":"node"`}},
		{"POST", a, `{"snapshot":"mine"}`, 201, []string{`"template":"mine"`}},
		{"POST", a, `{"alias":"x"}`, 201, []string{`"name":"x"`}},
		{"POST", a, `{`, 400, []string{`{"error":"the body is not valid JSON","code":"invalid"}`}},
		{"POST", a, `[]`, 400, []string{`the body must be a JSON object`}},
		{"POST", a, `{"timeout":"5"}`, 400, []string{`timeout must be an integer, not string`}},
		{"POST", a, `{"timeout":-1}`, 400, []string{`timeout must be`}},
		{"POST", a, `{"memoryMB":64}`, 400, []string{`memoryMB must be between 128 and 16384`}},
		{"POST", a, `{"memoryMB":999999}`, 400, nil},
		{"POST", a, `{"cpuCount":9}`, 400, nil},
		{"POST", a, `{"diskMB":-1}`, 400, nil},
		{"POST", a, `{"previewAuth":{"scheme":"bearer"}}`, 501, []string{`previewAuth is not available in this release`, `"unsupported"`}},
		{"POST", a, `{"image":{"base":"base"}}`, 501, nil},
		{"POST", a, big, 413, []string{`larger than 1048576 bytes`}},
		{"GET", a, "", 200, []string{boxA}},
		{"GET", a + "?all=1", "", 200, []string{goneA}},
		{"GET", a + "?status=error", "", 200, []string{`[]`}},
		{"GET", sb, "", 200, []string{`"status":"running"`, `"memoryMB":1024`}},
		{"GET", a + "/" + goneA, "", 200, []string{`"status":"stopped"`}},
		{"GET", a + "/sb-nothing1", "", 404, []string{`{"error":"sandbox not found","code":"not_found"}`}},
		{"DELETE", sb, "", 204, nil},
		{"POST", sb + "/timeout", `{"timeout":0}`, 204, nil},
		{"POST", sb + "/timeout", `{"timeout":-1}`, 400, nil},

		{"POST", sb + "/checkpoints", `{"name":"n"}`, 201, []string{`"sandboxId":"` + boxA + `"`, `"kind":"full"`, `"status":"ready"`, `"orgId":"org-a"`}},
		{"POST", sb + "/checkpoints", ``, 400, []string{`name is required`}},
		{"POST", sb + "/checkpoints", `{"name":"n","promoteToFull":true}`, 400, []string{`promoteToFull requires kind disk_only`}},
		{"POST", sb + "/checkpoints", `{"name":"n","promoteToFull":false}`, 201, nil},
		{"POST", sb + "/checkpoints", `{"name":"n","kind":"half"}`, 400, []string{`kind must be full or disk_only`}},
		{"POST", sb + "/checkpoints", `{"name":"n","retentionPolicy":{"mode":"x"}}`, 400, nil},
		{"POST", a + "/sb-nothing1/checkpoints", ``, 404, nil},
		{"GET", sb + "/checkpoints", "", 200, []string{`"id":"` + cpA + `"`, `"sizeBytes":7,"addedBytes":3`}},
		{"GET", a + "/" + goneA + "/checkpoints", "", 200, []string{`"damaged":true`}},
		{"POST", sb + "/checkpoints/" + cpA + "/restore", "", 200, []string{`{"sandboxId":"` + boxA + `","checkpointId":"` + cpA + `","status":"restored"}`}},
		{"DELETE", sb + "/checkpoints/" + cpA, "", 204, nil},
		{"POST", a + "/from-checkpoint/" + cpA, `{"timeout":300}`, 201, []string{`"fromCheckpointId":"` + cpA + `"`, `"timeout":300`, `"memoryMB":1024`}},
		{"POST", a + "/from-checkpoint/" + cpA, `{"count":3}`, 201, []string{`"sandboxes":[{`}},
		{"POST", a + "/from-checkpoint/cp-nothing1", ``, 404, []string{`checkpoint not found`}},
		{"POST", sb + "/fork", `{"count":2}`, 201, []string{`{"checkpoint":{"id":"cp-`, `"sandboxes":[{`}},
		{"GET", "/api/checkpoints/tree", "", 200, []string{`"parentId":"` + boxA + `"`}},
		{"GET", "/api/checkpoints/" + cpA, "", 200, nil},

		{"POST", "/api/checkpoints/" + cpA + "/verify", "", 200, []string{`{"id":"` + cpA + `","status":"verified"}`}},
		{"POST", "/api/checkpoints/cp-nothing1/verify", "", 404, []string{`checkpoint not found`}},
		{"GET", "/api/checkpoints/cp-nothing1/export", "", 404, []string{`checkpoint not found`}},
		{"GET", "/api/checkpoints/" + cpA + "/export", "", 200, nil},
		{"POST", "/api/checkpoints/" + cpA + "/convert", "", 200, []string{`"id":"` + cpA + `"`}},
		{"POST", "/api/checkpoints/import?name=n", "file", 201, []string{`"name":"n"`, `"status":"ready"`}},
		{"GET", "/api/checkpoints/" + cpDamaged, "", 200, []string{`"status":"failed"`, `"damaged":true`, `"errorMsg":"a pack is missing"`}},
		{"GET", "/api/store", "", 200, []string{`{"where":"s3://b/p","checkpoints":1,"logicalBytes":2,"storedBytes":3,"cacheBytes":4,"cacheLimit":5,"sealed":true}`}},
		{"POST", "/api/store/check", "", 200, []string{`{"checkpoints":1,"packs":2,"bytes":3,"leftovers":4,"leftBytes":5,"problems":[`}},
		{"POST", "/api/store/check", `{"readData":1}`, 400, []string{`readData must be`}},
		{"POST", "/api/store/check", `{`, 400, nil},
		{"POST", "/api/store/repair", "", 200, []string{`{"done":[`, `"remaining":[`}},
		{"POST", "/api/store/gc", `{"dryRun":true}`, 200, []string{`{"packs":1,"bytes":2,"checkpoints":3,"expired":4,"unknown":5,"dryRun":true}`}},
		{"GET", "/api/store/gc", "", 405, nil},

		{"GET", "/api/templates", "", 200, []string{`"name":"base"`, `"lastUsedAt":"0001-01-01T00:00:00Z"`, `"manifest":{}`}},
		{"GET", "/api/snapshots", "", 200, nil},
		{"GET", "/api/snapshots/base", "", 200, []string{`"contentHash":"h"`}},
		{"GET", "/api/snapshots/none", "", 404, []string{`template not found: none`}},
		{"DELETE", "/api/templates/base", "", 204, nil},
		{"DELETE", "/api/snapshots/none", "", 404, nil},
		{"POST", "/api/templates/base/build", "", 201, []string{`"status":"ready"`}},

		{"POST", sb + "/hibernate", "", 501, []string{`hibernation is not available in this release`}},
		{"POST", sb + "/preview/rotate", "", 501, nil},
		{"POST", a + "/checkpoints/" + cpA + "/publish", "", 501, nil},
		{"PUT", "/api/secret-stores/x/secrets/y", "", 501, nil},
		{"POST", "/auth/cli/device", "", 503, []string{`cli_login_unavailable`}},

		{"GET", "/api/nothing", "", 404, []string{`"error":"no such route: GET /api/nothing","code":"not_found"`}},
		{"GET", "/", "", 404, nil},
		{"PATCH", sb, "", 405, []string{`"error":"PATCH is not allowed here"`}},
		{"GET", sb + "/exec/x", "", 400, []string{`WebSocket`}},
	} {
		t.Run(c.method+" "+c.path+" "+c.body[:min(len(c.body), 30)], func(t *testing.T) {
			status, body := w.do(c.method, c.path, c.body)
			if status != c.status {
				t.Errorf("status %d, want %d: %.300s", status, c.status, body)
			}
			for _, s := range c.want {
				if !strings.Contains(body, s) {
					t.Errorf("no %s in %.600s", s, body)
				}
			}
			if status >= 400 {
				checkErrorBody(t, body)
			}
			if strings.Contains(body, "null") && c.path != "/openapi.json" {
				t.Errorf("null in %s", body)
			}
		})
	}
}

// checkErrorBody checks that a body is an error's and nothing else.
func checkErrorBody(t *testing.T, body string) {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Errorf("error body is no JSON object: %.200s", body)
	}
	for k, v := range m {
		if _, ok := v.(string); !ok || (k != "error" && k != "code" && k != "hint") {
			t.Errorf("error body has %s: %v", k, v)
		}
	}
	if m["error"] == "" || m["code"] == "" {
		t.Errorf("error body without error or code: %s", body)
	}
}

// TestFaults checks the status of each kind of fault, and that causes stay
// inside.
func TestFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for kind, status := range map[fault.Kind]int{
		fault.Invalid: 400, fault.Unauthorized: 401, fault.Forbidden: 403, fault.NotFound: 404, fault.Conflict: 409,
		fault.Gone: 410, fault.Exhausted: 429, fault.Internal: 500, fault.Unavailable: 503,
	} {
		w.failWith(fault.Wrap(kind, errors.New("secret cause"), "it is so").WithHint("do this"))
		got, body := w.do("GET", "/api/sandboxes/"+boxA, "")
		want := fmt.Sprintf(`{"error":"it is so","code":"%s","hint":"do this"}`, kind)
		if got != status || body != want {
			t.Errorf("%s: %d %s, want %d %s", kind, got, body, status, want)
		}
	}
	w.failWith(errors.New("secret cause"))
	status, body := w.do("GET", "/api/sandboxes/"+boxA, "")
	if status != 500 || strings.Contains(body, "secret") || !strings.Contains(body, "internal error") {
		t.Errorf("unknown error: %d %s", status, body)
	}
}

// TestAuthentication checks where a key may be and what is said without one.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		name, header, value, query string
		upgrade                    bool
		status                     int
		want                       string
	}{
		{"none", "", "", "", false, 401, `"error":"missing API key","code":"unauthorized"`},
		{"wrong", "X-API-Key", "osb_x", "", false, 403, `"error":"invalid API key","code":"forbidden"`},
		{"header", "X-API-Key", keyA, "", false, 200, ""},
		{"bearer", "Authorization", "Bearer " + keyA, "", false, 200, ""},
		{"basic", "Authorization", "Basic " + keyA, "", false, 401, ""},
		{"query on plain HTTP", "", "", "?api_key=" + keyA, false, 401, ""},
		{"query on a socket", "", "", "?api_key=" + keyA, true, 200, ""},
		{"wrong query on a socket", "", "", "?api_key=osb_x", true, 403, ""},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", w.url+"/api/whoami"+c.query, nil)
		if c.header != "" {
			req.Header.Set(c.header, c.value)
		}
		if c.upgrade {
			req.Header.Set("Upgrade", "websocket")
		}
		status, body := w.send(req)
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
	}
}

// TestForeignIsUnknown calls every described route, and the others that have an
// id, with the ids of another org.
func TestForeignIsUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	checked := 0
	try := func(method, path string) {
		if !strings.Contains(path, "{id}") && !strings.Contains(path, "{checkpoint}") {
			return
		}
		checked++
		p := strings.NewReplacer("{id}", boxB, "{checkpoint}", cpB, "{session}", "s", "{port}", "80", "{patch}", "p").Replace(path)
		body := `{"cmd":"true","name":"n","path":"/x","count":1}`
		req, _ := http.NewRequestWithContext(t.Context(), method, w.url+p+"?path=/x", strings.NewReader(body))
		req.Header.Set("X-API-Key", keyA)
		if strings.HasSuffix(path, "/{session}") && method == "GET" {
			for k, v := range map[string]string{"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} {
				req.Header.Set(k, v)
			}
		}
		if status, body := w.send(req); status != 404 || !strings.Contains(body, "not found") {
			t.Errorf("%s %s: %d %s", method, path, status, body)
		}
	}
	for path, item := range w.srv.api.OpenAPI().Paths {
		for method, op := range map[string]any{"GET": item.Get, "PUT": item.Put, "POST": item.Post, "DELETE": item.Delete} {
			if fmt.Sprint(op) != "<nil>" {
				try(method, path)
			}
		}
	}
	for _, p := range []string{"hibernate", "wake", "reboot", "scale", "preview", "mounts"} {
		try("POST", "/api/sandboxes/{id}/"+p)
	}
	try("POST", "/api/sandboxes/checkpoints/{checkpoint}/publish")
	try("GET", "/sandboxes/{id}/pty/{session}")
	try("GET", "/sandboxes/{id}/exec/{session}")
	if checked < 35 {
		t.Errorf("only %d routes were checked", checked)
	}
	// A checkpoint of the other org, with an own sandbox.
	for _, c := range [][2]string{{"POST", "/restore"}, {"DELETE", ""}} {
		if status, _ := w.do(c[0], "/api/sandboxes/"+boxA+"/checkpoints/"+cpB+c[1], ""); status != 404 {
			t.Errorf("%s foreign checkpoint%s: %d", c[0], c[1], status)
		}
	}
	if status, _ := w.do("GET", "/api/checkpoints/tree?sandbox="+boxB, ""); status != 404 {
		t.Errorf("tree of a foreign sandbox: %d", status)
	}
}

// TestPanic checks what a client sees of a handler that panics.
func TestPanic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.srv.mux.HandleFunc("GET /panics", func(http.ResponseWriter, *http.Request) { panic("stack") })
	w.srv.mux.HandleFunc("GET /panics-late", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		panic("stack")
	})
	status, body := w.do("GET", "/panics", "")
	if status != 500 || strings.Contains(body, "stack") || !strings.Contains(body, `"code":"internal"`) {
		t.Errorf("%d %s", status, body)
	}
	resp, err := http.Get(w.url + "/panics-late")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("an answer that broke off looks complete")
	}
}

// TestRequestFields checks what reaches the services.
func TestRequestFields(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(keyA)
	ctx := t.Context()
	if _, err := c.SpawnCheckpoint(ctx, cpA, client.SpawnRequest{Timeout: 300, Count: 2, Name: "n", Envs: map[string]string{"a": "b"}, MemoryMB: 2048}); err != nil {
		t.Fatal(err)
	}
	if r := w.lastSpawn; r.TimeoutSec != 300 || r.Count != 2 || r.Name != "n" || r.Envs["a"] != "b" || r.MemoryMB != 2048 {
		t.Errorf("spawn: %+v", r)
	}
	req := client.CreateCheckpointRequest{Name: "n", NoWait: true, RetentionPolicy: &client.RetentionPolicy{Mode: "delete_oldest", MaxCount: 3}}
	if _, err := c.CreateCheckpoint(ctx, boxA, req); err != nil {
		t.Fatal(err)
	}
	if r := w.lastCP; !r.NoWait || r.Retention.Mode != "delete_oldest" || r.Retention.MaxCount != 3 || r.Kind != "full" {
		t.Errorf("checkpoint: %+v", r)
	}
	sb, err := c.CreateSandbox(ctx, client.CreateSandboxRequest{Name: "n", Timeout: 60, CPUCount: 2, MemoryMB: 512, DiskMB: 100, Metadata: map[string]string{"k": "v"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r := w.lastCreate; r.Name != "n" || r.TimeoutSec != 60 || r.CPUs != 2 || r.MemoryMB != 512 || r.DiskMB != 100 || r.Metadata["k"] != "v" {
		t.Errorf("create: %+v", r)
	}
	if d := sb.EndAt.Sub(sb.StartedAt).Seconds(); d < 59 || d > 61 {
		t.Errorf("endAt is %v s after startedAt", d)
	}
	if err := c.SetTimeout(ctx, boxA, 7); err != nil || w.boxes[boxA].row.TimeoutSec != 7 {
		t.Errorf("timeout: %v", err)
	}
}

// FuzzBody feeds bodies to the decoders of all shapes.
func FuzzBody(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"timeout":1e99}`, `{"envs":{"a":1}}`, `{"webhooks":[[[]]]}`, "{\"name\":\"\xff\"}", `{"retentionPolicy":{}}`} {
		f.Add([]byte(s))
	}
	var w *world
	f.Fuzz(func(t *testing.T, body []byte) {
		if w == nil {
			w = newWorld(t)
		}
		for _, path := range []string{"/api/sandboxes", "/api/sandboxes/" + boxA + "/checkpoints", "/api/sandboxes/from-checkpoint/" + cpA, "/api/sandboxes/" + boxA + "/timeout"} {
			req := httptest.NewRequestWithContext(t.Context(), "POST", path, strings.NewReader(string(body)))
			req.Header.Set("X-API-Key", keyA)
			rec := httptest.NewRecorder()
			w.srv.ServeHTTP(rec, req)
			if rec.Code >= 500 && rec.Code != 501 || !json.Valid(rec.Body.Bytes()) && rec.Code != 204 {
				t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
			}
		}
	})
}
