// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	sbJSON = `{"id":"sb-1","sandboxID":"sb-1","templateID":"base","status":"running","cpuCount":2,"memoryMB":1024,"startedAt":"2026-01-15T10:30:00.5+02:00","endAt":"0001-01-01T00:00:00Z","unknown":1}`
	cpJSON = `{"id":"cp-7f3a1b2c","sandboxId":"sb-1","name":"my-checkpoint","status":"ready","kind":"full","sizeBytes":884145357,"addedBytes":1048576,"parentId":"cp-0","createdAt":"2024-01-15T12:30:00.123+02:00"}`
)

// answer is what the fake server says to one route.
type answer struct {
	route  string
	status int
	body   string
}

// commandCase is a command line, what the server answers, and what comes of it.
type commandCase struct {
	args    string
	answers []answer
	sent    []string
	code    int
	out     string
	errOut  string
}

// TestCommands holds every command to the request it sends and the text it
// prints.
func TestCommands(t *testing.T) {
	t.Parallel()
	runCommands(t, []commandCase{
		{args: "create", answers: []answer{{"POST /api/sandboxes", 201, sbJSON}},
			sent: []string{`POST /api/sandboxes {"templateID":"base","timeout":300}`},
			out:  "Created sandbox sb-1 (status: running)\n"},
		{args: "sandbox create --template t --timeout 0 --cpu 2 --memory 512 --disk 900 --env A=1,B=2 --env C=x,y --metadata k=v --name n",
			answers: []answer{{"POST /api/sandboxes", 201, sbJSON}},
			sent:    []string{`POST /api/sandboxes {"templateID":"t","name":"n","cpuCount":2,"memoryMB":512,"diskMB":900,"envs":{"A":"1","B":"2","C":"x,y"},"metadata":{"k":"v"}}`},
			out:     "Created sandbox sb-1 (status: running)\n"},
		{args: "create --env nonsense", code: 1, errOut: "Error: invalid --env value \"nonsense\": want KEY=VALUE\n"},
		{args: "create --timeout -1", code: 1, errOut: "Error: invalid timeout: -1\nTry: use 0 for never\n"},
		{args: "ls", answers: []answer{{"GET /api/sandboxes", 200, "[]"}}, sent: []string{"GET /api/sandboxes"}, out: "No sandboxes found.\n"},
		{args: "sandbox ls --all", answers: []answer{{"GET /api/sandboxes", 200, "null"}}, sent: []string{"GET /api/sandboxes?all=1"}, out: "No sandboxes found.\n"},
		{args: "ls --sessions-api-url https://sessions.example --no-color", answers: []answer{{"GET /api/sandboxes", 200, "[]"}}, sent: []string{"GET /api/sandboxes"}, out: "No sandboxes found.\n"},
		{args: "ls --json", answers: []answer{{"GET /api/sandboxes", 200, "null"}}, sent: []string{"GET /api/sandboxes"}, out: "[]\n"},
		{args: "get sb-1", answers: []answer{{"GET /api/sandboxes/sb-1", 200, sbJSON}}, sent: []string{"GET /api/sandboxes/sb-1"},
			out: "ID:        sb-1\nTemplate:  base\nStatus:    running\nCPU:       2\nMemory:    1024MB\nStarted:   2026-01-15T08:30:00Z\nEnds:      never\n"},
		{args: "sandbox get sb-2", answers: []answer{{"GET /api/sandboxes/sb-2", 200, `{"sandboxID":"sb-2","template":"t","status":"error","name":"n","reason":"died\u001b[2J","endAt":"2026-01-15T10:30:00Z","startedAt":"0001-01-01T00:00:00Z","fromCheckpointId":"cp-1"}`}},
			sent: []string{"GET /api/sandboxes/sb-2"},
			out:  "ID:        sb-2\nTemplate:  t\nStatus:    error\nCPU:       0\nMemory:    0MB\nStarted:   -\nEnds:      2026-01-15T10:30:00Z\nName:      n\nReason:    died?[2J\nFrom:      cp-1\n"},
		{args: "kill sb-1", answers: []answer{{"DELETE /api/sandboxes/sb-1", 204, ""}}, sent: []string{"DELETE /api/sandboxes/sb-1"}, out: "Sandbox sb-1 killed.\n"},
		{args: "kill sb-1", answers: []answer{{"DELETE /api/sandboxes/sb-1", 404, `{"error":"sandbox not found","code":"not_found"}`}}, sent: []string{"DELETE /api/sandboxes/sb-1"},
			code: 3, errOut: "Error: sandbox not found\n"},
		{args: "kill", code: 1, errOut: "Error: accepts 1 arg(s), received 0\nTry: oc kill --help\n"},
		{args: "set-timeout sb-1 60", answers: []answer{{"POST /api/sandboxes/sb-1/timeout", 204, ""}}, sent: []string{`POST /api/sandboxes/sb-1/timeout {"timeout":60}`},
			out: "Timeout updated to 60s for sandbox sb-1\n"},
		{args: "sandbox set-timeout sb-1 x", code: 1, errOut: "Error: invalid timeout: x\nTry: give a number of seconds, 0 for never\n"},

		{args: "checkpoint create sb-1 --name my-checkpoint", answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints", 201, cpJSON}},
			sent: []string{`POST /api/sandboxes/sb-1/checkpoints {"name":"my-checkpoint","kind":"full"}`},
			out:  "Checkpoint created: cp-7f3a1b2c (status: ready)\nName: my-checkpoint\n"},
		{args: "cp create sb-1 --name x --kind disk_only --retention-policy delete_oldest --retention-max-count 3 --no-wait",
			answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints", 201, `{"id":"cp-2","name":"x","status":"processing","createdAt":"2024-01-15T10:30:00Z"}`}},
			sent:    []string{`POST /api/sandboxes/sb-1/checkpoints {"name":"x","kind":"disk_only","retentionPolicy":{"mode":"delete_oldest","maxCount":3},"noWait":true}`},
			out:     "Checkpoint created: cp-2 (status: processing)\nName: x\n"},
		{args: "cp create sb-1 --name x", answers: []answer{
			{"POST /api/sandboxes/sb-1/checkpoints", 201, `{"id":"cp-2","name":"x","status":"processing"}`},
			{"GET /api/checkpoints/cp-2", 200, `{"id":"cp-2","name":"x","status":"ready"}`}},
			sent: []string{`POST /api/sandboxes/sb-1/checkpoints {"name":"x","kind":"full"}`, "GET /api/checkpoints/cp-2"},
			out:  "Checkpoint created: cp-2 (status: ready)\nName: x\n"},
		{args: "cp create sb-1 --name x", answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints", 201, `{"id":"cp-2","name":"x","status":"failed","errorMsg":"no space"}`}},
			sent: []string{`POST /api/sandboxes/sb-1/checkpoints {"name":"x","kind":"full"}`},
			code: 5, errOut: "Error: checkpoint cp-2 failed: no space\n"},
		{args: "cp create sb-1 --name x --kind disk_only --promote-to-full", answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints", 201, cpJSON}},
			sent: []string{`POST /api/sandboxes/sb-1/checkpoints {"name":"x","kind":"disk_only","promoteToFull":true}`},
			out:  "Checkpoint created: cp-7f3a1b2c (status: ready)\nName: my-checkpoint\n"},
		{args: "cp create sb-1 --name x --promote-to-full", code: 1, errOut: "Error: --promote-to-full requires --kind disk_only\n"},
		{args: "cp create sb-1", code: 1, errOut: "Error: required flag(s) \"name\" not set\nTry: oc checkpoint create --help\n"},
		{args: "cp create sb-1 --name x --kind half", code: 1, errOut: "Error: unsupported checkpoint kind \"half\"; expected full or disk_only\n"},
		{args: "cp create sb-1 --name x --retention-max-count 3", code: 1, errOut: "Error: --retention-max-count requires --retention-policy delete_oldest\n"},
		{args: "cp create sb-1 --name x --retention-policy all", code: 1, errOut: "Error: unsupported retention policy \"all\"; expected none or delete_oldest\n"},
		{args: "cp create sb-1 --name x", answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints", 409, `{"error":"checkpoint name already exists for this sandbox","hint":"choose another name"}`}},
			sent: []string{`POST /api/sandboxes/sb-1/checkpoints {"name":"x","kind":"full"}`},
			code: 4, errOut: "Error: checkpoint name already exists for this sandbox\nTry: choose another name\n"},
		{args: "checkpoint list sb-1", answers: []answer{{"GET /api/sandboxes/sb-1/checkpoints", 200, "[" + cpJSON + `,{"id":"cp-9","name":"b","status":"failed","createdAt":"2024-01-15T10:30:00Z"}]`}},
			sent: []string{"GET /api/sandboxes/sb-1/checkpoints"},
			out: "ID           NAME           STATUS  SIZE      CREATED\n" +
				"cp-7f3a1b2c  my-checkpoint  ready   843.2 MB  2024-01-15T10:30:00Z\n" +
				"cp-9         b              failed  -         2024-01-15T10:30:00Z\n"},
		{args: "cp list sb-1 --wide", answers: []answer{{"GET /api/sandboxes/sb-1/checkpoints", 200, "[" + cpJSON + `,{"id":"cp-9","name":"b","status":"ready","kind":"full","unverified":true,"createdAt":"2024-01-15T10:30:00Z"}]`}},
			sent: []string{"GET /api/sandboxes/sb-1/checkpoints"},
			out: "ID           NAME           STATUS  SIZE      CREATED               KIND  PARENT  ADDED   NOTE\n" +
				"cp-7f3a1b2c  my-checkpoint  ready   843.2 MB  2024-01-15T10:30:00Z  full  cp-0    1.0 MB  -\n" +
				"cp-9         b              ready   -         2024-01-15T10:30:00Z  full  -       -       unverified\n"},
		{args: "cp ls sb-1", answers: []answer{{"GET /api/sandboxes/sb-1/checkpoints", 200, "null"}}, sent: []string{"GET /api/sandboxes/sb-1/checkpoints"}, out: "No checkpoints found.\n"},
		{args: "cp restore sb-1 cp-1", answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints/cp-1/restore", 200, `{"sandboxId":"sb-1","checkpointId":"cp-1","status":"restored"}`}},
			sent: []string{"POST /api/sandboxes/sb-1/checkpoints/cp-1/restore {}"}, out: "Sandbox sb-1 restored to checkpoint cp-1\n"},
		{args: "cp restore sb-1 cp-1 --json", answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints/cp-1/restore", 200, `{"sandboxId":"sb-1","checkpointId":"cp-1","status":"restored"}`}},
			sent: []string{"POST /api/sandboxes/sb-1/checkpoints/cp-1/restore {}"},
			out:  "{\n  \"sandboxId\": \"sb-1\",\n  \"checkpointId\": \"cp-1\",\n  \"status\": \"restored\"\n}\n"},
		{args: "cp restore sb-1 cp-1", answers: []answer{{"POST /api/sandboxes/sb-1/checkpoints/cp-1/restore", 500, `{"error":"checkpoint cp-1 is corrupted"}`}},
			sent: []string{"POST /api/sandboxes/sb-1/checkpoints/cp-1/restore {}"}, code: 5, errOut: "Error: checkpoint cp-1 is corrupted\n"},
		{args: "cp spawn cp-1", answers: []answer{{"POST /api/sandboxes/from-checkpoint/cp-1", 201, sbJSON}},
			sent: []string{`POST /api/sandboxes/from-checkpoint/cp-1 {"count":1,"timeout":300}`},
			out:  "Created sandbox sb-1 from checkpoint (status: running)\n"},
		{args: "checkpoint spawn cp-1 -n 2 --timeout 0 --name w", answers: []answer{{"POST /api/sandboxes/from-checkpoint/cp-1", 201,
			`{"sandboxID":"sb-1","status":"running","sandboxes":[{"sandboxID":"sb-1","status":"running"},{"sandboxID":"sb-2","status":"running"}]}`}},
			sent: []string{`POST /api/sandboxes/from-checkpoint/cp-1 {"count":2,"name":"w"}`},
			out:  "Created sandbox sb-1 from checkpoint (status: running)\nCreated sandbox sb-2 from checkpoint (status: running)\n"},
		{args: "cp spawn cp-1 -n 0", code: 1, errOut: "Error: invalid count: 0\n"},
		{args: "cp delete sb-1 cp-1", answers: []answer{{"DELETE /api/sandboxes/sb-1/checkpoints/cp-1", 204, ""}}, sent: []string{"DELETE /api/sandboxes/sb-1/checkpoints/cp-1"}, out: "Checkpoint cp-1 deleted.\n"},
		{args: "cp rm sb-1 cp-1", answers: []answer{{"DELETE /api/sandboxes/sb-1/checkpoints/cp-1", 404, `{"error":"no"}`}}, sent: []string{"DELETE /api/sandboxes/sb-1/checkpoints/cp-1"}, out: "Checkpoint cp-1 deleted.\n"},
		{args: "cp tree", answers: []answer{{"GET /api/checkpoints/tree", 200, "[]"}}, sent: []string{"GET /api/checkpoints/tree"}, out: "No checkpoints found.\n"},
		{args: "cp tree sb-1", answers: []answer{{"GET /api/checkpoints/tree", 200,
			`[{"kind":"sandbox","id":"sb-1","status":"running"},{"kind":"checkpoint","id":"cp-1","name":"a","status":"ready","parentId":"sb-1"},{"kind":"checkpoint","id":"cp-2","name":"b","status":"ready","parentId":"cp-1"},{"kind":"sandbox","id":"sb-2","name":"w","status":"stopped","parentId":"cp-1"},{"kind":"checkpoint","id":"cp-3","name":"c","status":"failed","parentId":"sb-1"}]`}},
			sent: []string{"GET /api/checkpoints/tree?sandbox=sb-1"},
			out:  "sb-1  (running)\n├─ cp-1  a  (ready)\n│  ├─ cp-2  b  (ready)\n│  └─ sb-2  w  (stopped)\n└─ cp-3  c  (failed)\n"},
		{args: "fork sb-1 -n 2", answers: []answer{{"POST /api/sandboxes/sb-1/fork", 201, `{"checkpoint":` + cpJSON + `,"sandboxes":[{"sandboxID":"sb-2","status":"running"},{"sandboxID":"sb-3","status":"running"}]}`}},
			sent: []string{`POST /api/sandboxes/sb-1/fork {"count":2,"timeout":300}`},
			out:  "Checkpoint created: cp-7f3a1b2c (status: ready)\nCreated sandbox sb-2 from checkpoint (status: running)\nCreated sandbox sb-3 from checkpoint (status: running)\n"},

		{args: "template list", answers: []answer{{"GET /api/templates", 200, `[{"name":"base","status":"ready","createdAt":"2026-01-15T10:30:00Z","lastUsedAt":"0001-01-01T00:00:00Z"}]`}},
			sent: []string{"GET /api/templates"},
			out:  "NAME  STATUS  CHECKPOINT  LAST USED  CREATED\nbase  ready   -           -          2026-01-15T10:30:00Z\n"},
		{args: "snapshots ls", answers: []answer{{"GET /api/templates", 200, "[]"}}, sent: []string{"GET /api/templates"}, out: "No templates found.\n"},
		{args: "template rm t", answers: []answer{{"DELETE /api/templates/t", 204, ""}}, sent: []string{"DELETE /api/templates/t"}, out: "Template t deleted.\n"},
		{args: "template delete t", answers: []answer{{"DELETE /api/templates/t", 409, `{"error":"template t is used by sb-1"}`}}, sent: []string{"DELETE /api/templates/t"}, code: 4, errOut: "Error: template t is used by sb-1\n"},
		{args: "template build base", answers: []answer{{"POST /api/templates/base/build", 200, `{"name":"base","status":"ready","sizeBytes":2097152}`}},
			sent: []string{"POST /api/templates/base/build {}"}, out: "Template base ready (2.0 MB)\n"},
		{args: "exec kill sb-1 s1 --signal TERM", code: 1, errOut: "Error: invalid argument \"TERM\" for \"--signal\" flag: strconv.ParseInt: parsing \"TERM\": invalid syntax\nTry: oc exec kill --help\n"},
		{args: "template import t /nonexistent", code: 1, errOut: "Error: stat /nonexistent: no such file or directory\n"},

		{args: "exec list sb-1", answers: []answer{{"GET /api/sandboxes/sb-1/exec", 200, "[]"}}, sent: []string{"GET /api/sandboxes/sb-1/exec"}, out: "No active exec sessions.\n"},
		{args: "exec list sb-1", answers: []answer{{"GET /api/sandboxes/sb-1/exec", 200,
			`[{"sessionID":"s1","command":"sh","args":["-c","echo \u001b]0;x\u0007"],"running":true,"attachedClients":2},{"sessionID":"s2","command":"ls","running":false,"exitCode":3}]`}},
			sent: []string{"GET /api/sandboxes/sb-1/exec"},
			out:  "  s1  running  sh -c echo ?]0;x?  clients=2\n  s2  exited (3)  ls  clients=0\n"},
		{args: "exec kill sb-1 s1", answers: []answer{{"POST /api/sandboxes/sb-1/exec/s1/kill", 200, "{}"}}, sent: []string{`POST /api/sandboxes/sb-1/exec/s1/kill {"signal":9}`}, out: "Session s1 killed\n"},
		{args: "exec kill sb-1 s1 --signal 15", answers: []answer{{"POST /api/sandboxes/sb-1/exec/s1/kill", 204, ""}}, sent: []string{`POST /api/sandboxes/sb-1/exec/s1/kill {"signal":15}`}, out: "Session s1 killed\n"},
		{args: "exec kill sb-1 s1", answers: []answer{{"POST /api/sandboxes/sb-1/exec/s1/kill", 200, `{"ended":true}`}}, sent: []string{`POST /api/sandboxes/sb-1/exec/s1/kill {"signal":9}`}, out: "Session s1 has ended already\n"},
		{args: "exec kill sb-1 s1 --signal 99", code: 1, errOut: "Error: invalid signal: 99\nTry: give a number such as 15\n"},
		{args: "exec sb-1", code: 1, errOut: "Error: no command specified. Usage: oc exec <sandbox-id> -- <command>\n"},
		{args: "exec sb-1 --wait --detach -- ls", code: 1, errOut: "Error: --wait and --detach are mutually exclusive\n"},
		{args: "shell sb-1", code: 1, errOut: "Error: failed to enter raw mode: standard input is not a terminal\nTry: oc exec sb-1 -- COMMAND\n"},

		{args: "version", out: "oc version dev\n"},
		{args: "--version", out: "oc version dev\n"},
		{args: "version --json", out: "{\n  \"version\": \"dev\"\n}\n"},
		{args: "get", code: 1, errOut: "Error: accepts 1 arg(s), received 0\nTry: oc get --help\n"},
		{args: "x", code: 1, errOut: "Error: unknown command \"x\" for \"oc\"\nTry: oc --help\n"},
		{args: "cp x", code: 1, errOut: "Error: unknown command \"x\" for \"oc checkpoint\"\nTry: oc checkpoint --help\n"},
		{args: "get sb-1 --bogus", code: 1, errOut: "Error: unknown flag: --bogus\nTry: oc get --help\n"},
		{args: "get --json", code: 1, errOut: `{"code":1,"error":"accepts 1 arg(s), received 0","hint":"oc get --help"}` + "\n"},
		{args: "get sb-1 --json", answers: []answer{{"GET /api/sandboxes/sb-1", 404, `{"error":"sandbox not found"}`}}, sent: []string{"GET /api/sandboxes/sb-1"},
			code: 3, errOut: `{"code":3,"error":"sandbox not found"}` + "\n"},
		{args: "get sb-1", answers: []answer{{"GET /api/sandboxes/sb-1", 401, `{"error":"missing API key"}`}}, sent: []string{"GET /api/sandboxes/sb-1"},
			code: 3, errOut: "Error: missing API key\nTry: set a valid key with 'oc config set api-key KEY' or OPENCOMPUTER_API_KEY\n"},
		{args: "get sb-1", answers: []answer{{"GET /api/sandboxes/sb-1", 502, `bad gateway`}}, sent: []string{"GET /api/sandboxes/sb-1"},
			code: 5, errOut: "Error: bad gateway\n"},
		{args: "get sb-1", answers: []answer{{"GET /api/sandboxes/sb-1", 200, `{"startedAt":""}`}}, sent: []string{"GET /api/sandboxes/sb-1"},
			code: 1, errOut: "Error: unreadable answer of the server"},
	})
}

// runCommands runs each case against a server of its own.
func runCommands(t *testing.T, cases []commandCase) {
	t.Helper()
	for _, tc := range cases {
		t.Run(tc.args, func(t *testing.T) {
			t.Parallel()
			srv := newFake(t)
			for _, a := range tc.answers {
				srv.reply(a.route, a.status, a.body)
			}
			got := invocation{url: srv.URL, args: strings.Fields(tc.args)}.run(t)
			if got.code != tc.code {
				t.Errorf("exit code %d, want %d", got.code, tc.code)
			}
			if got.out != tc.out {
				t.Errorf("stdout\n%q, want\n%q", got.out, tc.out)
			}
			if !strings.HasPrefix(got.errOut, tc.errOut) || (tc.errOut == "" && got.errOut != "") {
				t.Errorf("stderr\n%q, want\n%q", got.errOut, tc.errOut)
			}
			if sent := srv.received(); !slices.Equal(sent, tc.sent) {
				t.Errorf("sent\n%q, want\n%q", sent, tc.sent)
			}
			for _, r := range srv.requests {
				if r.key != testKey {
					t.Errorf("%s: key %q", r.line, r.key)
				}
			}
		})
	}
}

func TestListTable(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	started := time.Now().Add(-150 * time.Second).UTC().Format(time.RFC3339Nano)
	srv.reply("GET /api/sandboxes", 200, fmt.Sprintf(
		`[{"sandboxID":"sb-1","template":"base","status":"running","cpuCount":1,"memoryMB":1024,"startedAt":%q,"endAt":"0001-01-01T00:00:00Z"}]`, started))
	got := invocation{url: srv.URL, args: []string{"ls"}}.run(t)
	lines := strings.Split(got.out, "\n")
	if lines[0] != "ID    TEMPLATE  STATUS   CPU  MEM     AGE" {
		t.Errorf("header %q", lines[0])
	}
	if !strings.HasPrefix(lines[1], "sb-1  base      running  1    1024MB  2m3") {
		t.Errorf("row %q", lines[1])
	}
}

// TestJSONShapes holds the documents that scripts take apart.
func TestJSONShapes(t *testing.T) {
	t.Parallel()
	two := `{"sandboxID":"sb-1","status":"running","sandboxes":[` + sbJSON + "," + sbJSON + "]}"
	for _, tc := range []struct {
		args, route, body string
		check             string // must be in the output
		prefix            string
	}{
		{"cp spawn cp-1 --json", "POST /api/sandboxes/from-checkpoint/cp-1", sbJSON, `  "id": "sb-1",`, "{\n"},
		{"cp spawn cp-1 -n 2 --json", "POST /api/sandboxes/from-checkpoint/cp-1", two, `    "id": "sb-1",`, "[\n"},
		{"create --json", "POST /api/sandboxes", sbJSON, `  "sandboxID": "sb-1",`, "{\n"},
		{"kill sb-1 --json", "DELETE /api/sandboxes/sb-1", `{}`, `  "id": "sb-1",`, "{\n"},
		{"set-timeout sb-1 0 --json", "POST /api/sandboxes/sb-1/timeout", `{}`, `  "timeout": 0`, "{\n"},
		{"cp delete sb-1 cp-1 --json", "DELETE /api/sandboxes/sb-1/checkpoints/cp-1", `{}`, `  "id": "cp-1",`, "{\n"},
		{"cp create sb-1 --name x --json", "POST /api/sandboxes/sb-1/checkpoints", cpJSON, `  "addedBytes": 1048576,`, "{\n"},
		{"cp list sb-1 --json", "GET /api/sandboxes/sb-1/checkpoints", "null", ``, "[]\n"},
		{"cp tree --json", "GET /api/checkpoints/tree", "null", ``, "[]\n"},
		{"fork sb-1 --json", "POST /api/sandboxes/sb-1/fork", `{"checkpoint":` + cpJSON + `}`, `  "sandboxes": []`, "{\n"},
		{"template rm t --json", "DELETE /api/templates/t", `{}`, `  "name": "t",`, "{\n"},
		{"exec list sb-1 --json", "GET /api/sandboxes/sb-1/exec", "null", ``, "[]\n"},
		{"exec kill sb-1 s --json", "POST /api/sandboxes/sb-1/exec/s/kill", "{}", `  "sessionID": "s"`, "{\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			t.Parallel()
			srv := newFake(t)
			srv.reply(tc.route, 200, tc.body)
			got := invocation{url: srv.URL, args: strings.Fields(tc.args)}.run(t)
			if got.code != 0 || !strings.HasPrefix(got.out, tc.prefix) || !strings.Contains(got.out, tc.check) {
				t.Errorf("%d %s %s", got.code, got.out, got.errOut)
			}
		})
	}
}

// TestCreateShowsTheBuild reads the progress stream of a template's build.
func TestCreateShowsTheBuild(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	srv.handle("POST /api/sandboxes", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("Accept: %q", r.Header.Get("Accept"))
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, ": keepalive\n\nevent: build_log\ndata: {\"step\":1,\"message\":\"fetching packages\"}\n\nevent: result\ndata: "+sbJSON+"\n\n")
	})
	got := invocation{url: srv.URL, args: []string{"create"}}.run(t)
	if got.code != 0 || got.errOut != "fetching packages\n" || got.out != "Created sandbox sb-1 (status: running)\n" {
		t.Errorf("%+v", got)
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	url := srv.URL
	srv.Close()
	got := invocation{url: url, args: []string{"ls"}}.run(t)
	want := "Error: no server answers at " + url + "\nTry: start one with 'sudo oc up', or point at another with 'oc config set api-url URL'\n"
	if got.code != 1 || got.errOut != want {
		t.Errorf("%+v", got)
	}
}

// TestUnreadableFileIsNotTheServersFault: whether the request has left by then is
// a matter of luck.
func TestUnreadableFileIsNotTheServersFault(t *testing.T) {
	t.Parallel()
	got := invocation{url: newFake(t).URL, args: []string{"template", "import", "t", "/proc/self/mem"}}.run(t)
	if got != (result{ExitGeneral, "", "Error: read /proc/self/mem: input/output error\n"}) {
		t.Errorf("%+v", got)
	}
}

// TestWhatIsNotUTF8IsRefused because what is sent is JSON: it would arrive changed.
func TestWhatIsNotUTF8IsRefused(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"exec", "sb-1", "--", "printf", "a\xff"},
		{"exec", "sb-1", "--env", "A=\xff", "--", "true"},
		{"exec", "sb-1", "--cwd", "\xff", "--", "true"},
		{"create", "--name", "\xff"},
		{"create", "--env", "A=1", "--env", "B=\xff"},
		{"checkpoint", "create", "sb-1", "--name", "\xff"},
		{"pull", "sb-1", "\xff", "x"},
		{"push", "sb-1", "commands_test.go", "\xff/"},
	} {
		fake := newFake(t)
		got := invocation{url: fake.URL, args: args}.run(t)
		if got.code != ExitGeneral || !strings.Contains(got.errOut, "is not valid UTF-8") || len(fake.received()) != 0 {
			t.Errorf("oc %q: %+v, sent %q", args, got, fake.received())
		}
	}
}

// TestEmptyArgumentsAreRefused gives every command that takes an id or a name an
// empty one, as a script does whose variable is unset: nothing may be sent, and
// nothing be said to be done.
func TestEmptyArgumentsAreRefused(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"get |":                         "<sandbox>",
		"kill |":                        "<sandbox>",
		"set-timeout | 5":               "<sandbox>",
		"exec | -- true":                "<sandbox>",
		"exec | true":                   "<sandbox>",
		"exec attach sb-1 |":            "<session>",
		"exec kill | es-1":              "<sandbox>",
		"exec list |":                   "<sandbox>",
		"shell |":                       "<sandbox>",
		"push | a b":                    "<sandbox>",
		"pull | a b":                    "<sandbox>",
		"fork |":                        "<sandbox>",
		"checkpoint create | --name x":  "<sandbox>",
		"checkpoint list |":             "<sandbox>",
		"checkpoint tree |":             "[sandbox]",
		"checkpoint restore sb-1 |":     "<checkpoint>",
		"checkpoint spawn |":            "<checkpoint>",
		"checkpoint delete sb-1 |":      "<checkpoint>",
		"checkpoint delete | cp-1":      "<sandbox>",
		"checkpoint export | x":         "<checkpoint>",
		"template delete |":             "<name>",
		"template build |":              "<name>",
		"template import | commands.go": "<name>",
		"sandbox get |":                 "<sandbox>",
	} {
		fake := newFake(t)
		args := strings.Fields(line)
		for i, arg := range args {
			if arg == "|" {
				args[i] = ""
			}
		}
		got := invocation{url: fake.URL, args: args}.run(t)
		if got.code != ExitGeneral || got.out != "" || !strings.Contains(got.errOut, "the argument "+want+" is empty") || len(fake.received()) != 0 {
			t.Errorf("oc %s: %+v, sent %q", line, got, fake.received())
		}
	}
}
