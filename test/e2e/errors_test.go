// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencomputer/oc/client"
)

// TestErrorsSayWhatToDoWithTheRightExitCode goes through what a user may get
// wrong on the command line.
func TestErrorsSayWhatToDoWithTheRightExitCode(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	cp := b.checkpoint("taken")
	stopped := create(t, shared)
	oc(t, shared, "kill", stopped.id)
	const badKey = "osb_0000000000000000000000000000000000000000000000000000000000000000"
	for _, c := range []struct {
		code  int
		texts []string
		args  []string
	}{
		// Wrong usage: 1, before anything is sent.
		{1, []string{`required flag(s) "name" not set`}, []string{"checkpoint", "create", b.id}},
		{1, []string{"accepts 1 arg(s), received 0"}, []string{"kill"}},
		{1, []string{`unknown command "destroy" for "oc"`}, []string{"destroy"}},
		{1, []string{"unknown flag: --nme"}, []string{"create", "--nme", "x"}},
		{1, []string{`invalid argument "soon"`}, []string{"create", "--timeout", "soon"}},
		{1, []string{"no command specified. Usage: oc exec <sandbox-id> -- <command>"}, []string{"exec", b.id, "--"}},
		{1, []string{"--wait and --detach are mutually exclusive"}, []string{"exec", b.id, "--wait", "--detach", "--", "true"}},
		{1, []string{`unsupported checkpoint kind "half"; expected full or disk_only`}, []string{"checkpoint", "create", b.id, "--name", "x", "--kind", "half"}},
		{1, []string{`unsupported retention policy "some"`}, []string{"checkpoint", "create", b.id, "--name", "x", "--retention-policy", "some"}},
		{1, []string{"invalid count: 0"}, []string{"checkpoint", "spawn", cp, "-n", "0"}},
		{1, []string{"the argument <checkpoint> is empty"}, []string{"checkpoint", "delete", b.id, ""}},
		{1, []string{"no server answers", "oc up"}, []string{"--api-url", "http://127.0.0.1:1", "ls"}},
		{1, []string{"not a terminal", "oc exec"}, []string{"shell", b.id}},

		// The server refuses: 3.
		{3, []string{"sandbox not found"}, []string{"get", "sb-00000000"}},
		{3, []string{"sandbox not found"}, []string{"kill", "sb-00000000"}},
		{3, []string{"sandbox not found"}, []string{"exec", "sb-00000000", "--", "true"}},
		{3, []string{"sandbox not found"}, []string{"checkpoint", "create", "sb-00000000", "--name", "x"}},
		{3, []string{"sandbox not found"}, []string{"fork", "sb-00000000"}},
		{3, []string{"sandbox not found"}, []string{"get", "../../etc/passwd"}},
		{3, []string{"checkpoint not found"}, []string{"checkpoint", "spawn", "cp-00000000"}},
		{3, []string{"checkpoint not found"}, []string{"checkpoint", "restore", b.id, "cp-00000000"}},
		{3, []string{"checkpoint not found"}, []string{"checkpoint", "spawn", "cp-0'; drop table checkpoints"}},
		{3, []string{"does not belong to"}, []string{"checkpoint", "delete", create(t, shared).id, cp}},
		{3, []string{"template not found", "nonesuch"}, []string{"create", "--template", "nonesuch"}},
		{3, []string{"not a tar archive"}, []string{"template", "import", "no-archive", testdata(t, "lines.py")}},
		{4, []string{"template no-archive is not ready (status: failed): the file is not a tar archive", "import"}, []string{"create", "--template", "no-archive"}},
		{3, []string{"name"}, []string{"checkpoint", "create", b.id, "--name", strings.Repeat("x", 1000)}},
		{3, []string{"name is required"}, []string{"checkpoint", "create", b.id, "--name", ""}},
		{3, []string{"sandbox must be running to create a checkpoint", stopped.id}, []string{"checkpoint", "create", stopped.id, "--name", "x"}},
		{3, []string{"sandbox must be running to restore a checkpoint", "spawn"}, []string{"checkpoint", "restore", stopped.id, cp}},
		{3, []string{"sandbox must be running to be forked"}, []string{"fork", stopped.id}},
		{3, []string{"has been stopped"}, []string{"exec", stopped.id, "--", "true"}},
		{3, []string{"has been stopped"}, []string{"push", stopped.id, testdata(t, "lines.py"), "x"}},
		{3, []string{"no such file or directory", "/nonesuch"}, []string{"pull", b.id, "/nonesuch", t.TempDir() + "/x"}},
		{3, []string{"invalid API key"}, []string{"--api-key", badKey, "ls"}},

		// It clashes: 4.
		{4, []string{"template small is used by", "kill the sandboxes"}, []string{"template", "delete", "small"}},
		{4, []string{"checkpoint name already exists for this sandbox"}, []string{"checkpoint", "create", b.id, "--name", "taken"}},
	} {
		refused(t, shared, c.code, c.texts, c.args...)
	}
	b.answers()
	if list := asJSON[[]client.Checkpoint](t, shared, "checkpoint", "list", b.id); len(list) != 1 {
		t.Errorf("the refused calls left checkpoints: %+v", list)
	}

	// In JSON: one line on stderr, nothing on stdout.
	out := invoke(t, shared, nil, "get", "sb-00000000", "--json")
	var said struct {
		Code  int
		Error string
	}
	if err := json.Unmarshal([]byte(out.Stderr), &said); err != nil || out.Stdout != "" ||
		said.Code != 3 || said.Error != "sandbox not found" || strings.Count(out.Stderr, "\n") != 1 {
		t.Errorf("%s", out)
	}

	// Without any key there is a warning first.
	bare := shared.Command(t.Context(), "--api-url", shared.URL, "ls")
	bare.Env = []string{"HOME=" + t.TempDir()}
	var stderr bytes.Buffer
	bare.Stderr = &stderr
	_ = bare.Run()
	if text := stderr.String(); bare.ProcessState.ExitCode() != 3 ||
		!strings.Contains(text, "Warning: no API key configured. Set OPENCOMPUTER_API_KEY or run 'oc config set api-key <key>'") || !strings.Contains(text, "missing API key") {
		t.Errorf("without a key: %d\n%s", bare.ProcessState.ExitCode(), text)
	}
}

// TestHTTPStatusesAreThoseOfTheContract goes through the API's own refusals.
func TestHTTPStatusesAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	cp := b.checkpoint("taken")
	stopped := create(t, shared)
	oc(t, shared, "kill", stopped.id)
	for _, c := range []struct {
		status            int
		text              string
		method, path, key string
		body              string
	}{
		{401, "missing API key", "GET", "/api/sandboxes", "", ""},
		{403, "invalid API key", "GET", "/api/sandboxes", "osb_x", ""},
		{200, "[", "GET", "/api/sandboxes", shared.Key, ""},
		{200, "ok", "GET", "/health", "", ""},
		{404, "", "GET", "/api/nonesuch", shared.Key, ""},
		{404, "sandbox not found", "GET", "/api/sandboxes/sb-00000000", shared.Key, ""},
		{404, "sandbox not found", "DELETE", "/api/sandboxes/sb-00000000", shared.Key, ""},
		{204, "", "DELETE", "/api/sandboxes/" + stopped.id, shared.Key, ""},
		{410, "stopped", "POST", "/api/sandboxes/" + stopped.id + "/exec/run", shared.Key, `{"cmd":"true"}`},
		{400, "cmd is required", "POST", "/api/sandboxes/" + b.id + "/exec/run", shared.Key, `{}`},
		{400, "", "POST", "/api/sandboxes/" + b.id + "/exec/run", shared.Key, `{"cmd":`},
		{400, "name is required", "POST", "/api/sandboxes/" + b.id + "/checkpoints", shared.Key, ``},
		{400, "kind must be full or disk_only", "POST", "/api/sandboxes/" + b.id + "/checkpoints", shared.Key, `{"name":"x","kind":"half"}`},
		{409, "already exists", "POST", "/api/sandboxes/" + b.id + "/checkpoints", shared.Key, `{"name":"taken"}`},
		{404, "checkpoint not found", "POST", "/api/sandboxes/from-checkpoint/cp-00000000", shared.Key, ``},
		{400, "count is 101; it must be from 1 to 100", "POST", "/api/sandboxes/from-checkpoint/" + cp, shared.Key, `{"count":101}`},
		{400, "count is -1; it must be from 1 to 100", "POST", "/api/sandboxes/" + b.id + "/fork", shared.Key, `{"count":-1}`},
		{404, "checkpoint not found", "POST", "/api/sandboxes/" + b.id + "/checkpoints/cp-00000000/restore", shared.Key, ``},
		{400, "timeout", "POST", "/api/sandboxes/" + b.id + "/timeout", shared.Key, `{"timeout":-1}`},
		{400, "from 0 (never) to 31536000", "POST", "/api/sandboxes/" + b.id + "/timeout", shared.Key, `{"timeout":99999999999}`},
		{204, "", "POST", "/api/sandboxes/" + b.id + "/timeout", shared.Key, `{"timeout":0,"unknown":true}`},
		{404, "template not found", "POST", "/api/sandboxes", shared.Key, `{"templateID":"nonesuch"}`},
		{400, "", "POST", "/api/sandboxes", shared.Key, `{"templateID":"small","memoryMB":-5}`},
		{200, `"exitCode":3`, "POST", "/api/sandboxes/" + b.id + "/exec/run", shared.Key, `{"cmd":"exit 3"}`},
		{200, `"status":"restored"`, "POST", "/api/sandboxes/" + b.id + "/checkpoints/" + cp + "/restore", shared.Key, `{"noSave":true}`},
		{204, "", "DELETE", "/api/sandboxes/" + b.id + "/checkpoints/" + cp, shared.Key, ``},
		{200, "[]", "GET", "/api/sandboxes/" + b.id + "/checkpoints", shared.Key, ``},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, shared.URL+c.path, strings.NewReader(c.body))
		must(t, err)
		if c.key != "" {
			req.Header.Set("X-API-Key", c.key)
		}
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || !strings.Contains(string(body), c.text) {
			t.Errorf("%s %s %s: %d %s %v, want %d %q", c.method, c.path, c.body, resp.StatusCode, body, err, c.status, c.text)
		}
		if resp.StatusCode >= 400 {
			var e client.ErrorBody
			if json.Unmarshal(body, &e) != nil || e.Error == "" {
				t.Errorf("%s %s: the body is not an error: %s", c.method, c.path, body)
			}
		}
	}
}

// TestSecondOperationWaitsItsTurn runs checkpoints and a restore of one sandbox
// at once: all succeed, one after the other.
func TestSecondOperationWaitsItsTurn(t *testing.T) {
	t.Parallel()
	b := create(t, shared)
	b.count()
	cp := b.checkpoint("first")
	runs := [][]string{
		{"checkpoint", "create", b.id, "--name", "a"}, {"checkpoint", "create", b.id, "--name", "b"},
		{"checkpoint", "restore", b.id, cp}, {"exec", b.id, "--", "true"}, {"checkpoint", "create", b.id, "--name", "c"},
	}
	results := make(chan error, len(runs))
	for _, args := range runs {
		go func() {
			out, err := shared.Run(t.Context(), nil, args...)
			if err == nil && out.Code != 0 {
				t.Errorf("%s", out)
			}
			results <- err
		}()
	}
	for range runs {
		must(t, <-results)
	}
	b.countOn(5)
	b.ticks()
}
