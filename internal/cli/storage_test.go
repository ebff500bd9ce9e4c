// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	reportJSON  = `{"checkpoints":3,"packs":20,"bytes":2097152,"leftovers":1,"leftBytes":1048576,"problems":[]}`
	problemJSON = `{"checkpoint":"cp-1","object":"o1","key":"packs/o1/a","what":"is\u0007 missing","harmless":false}`
	harmless    = `{"checkpoint":"(another org)","key":"packs/o2/b","what":"its index does not match","harmless":true}`
	statsJSON   = `{"where":"s3://b/p","checkpoints":3,"logicalBytes":31457280,"storedBytes":3145728,"cacheBytes":1048576,"cacheLimit":2097152,"sealed":true}`
)

// TestStorageCommands holds the commands about where checkpoints are to what they
// send and print.
func TestStorageCommands(t *testing.T) {
	t.Parallel()
	verify, check := "POST /api/checkpoints/cp-1/verify", "POST /api/store/check"
	repair, gc := "POST /api/store/repair", "POST /api/store/gc"
	runCommands(t, []commandCase{
		{args: "checkpoint verify cp-1", answers: []answer{{verify, 200, `{"id":"cp-1","status":"verified"}`}}, sent: []string{verify + " {}"}, out: "Checkpoint cp-1 verified.\n"},
		{args: "cp verify cp-1 --json", answers: []answer{{verify, 200, `{"id":"cp-1","status":"verified"}`}}, sent: []string{verify + " {}"},
			out: "{\n  \"id\": \"cp-1\",\n  \"status\": \"verified\"\n}\n"},
		{args: "cp verify cp-1", answers: []answer{{verify, 500, `{"error":"checkpoint cp-1 is damaged: pack x is missing","code":"internal"}`}}, sent: []string{verify + " {}"},
			code: 5, errOut: "Error: checkpoint cp-1 is damaged: pack x is missing\n"},
		{args: "cp verify cp-1", answers: []answer{{verify, 404, `{"error":"checkpoint not found","code":"not_found"}`}}, sent: []string{verify + " {}"},
			code: 3, errOut: "Error: checkpoint not found\n"},
		{args: "cp verify", code: 1, errOut: "Error: accepts 1 arg(s), received 0\nTry: oc checkpoint verify --help\n"},
		{args: "cp verify a b", code: 1, errOut: "Error: accepts 1 arg(s), received 2\n"},

		{args: "cp convert cp-7f3a1b2c", answers: []answer{{"POST /api/checkpoints/cp-7f3a1b2c/convert", 200, cpJSON}}, sent: []string{"POST /api/checkpoints/cp-7f3a1b2c/convert {}"},
			out: "Checkpoint cp-7f3a1b2c is in the page store (843.2 MB, of which 1.0 MB are new there).\n"},
		{args: "cp convert cp-1", answers: []answer{{"POST /api/checkpoints/cp-1/convert", 409, `{"error":"checkpoint cp-1 is in use"}`}}, sent: []string{"POST /api/checkpoints/cp-1/convert {}"},
			code: 4, errOut: "Error: checkpoint cp-1 is in use\n"},
		{args: "cp convert", code: 1, errOut: "Error: accepts 1 arg(s), received 0\n"},

		{args: "cp export cp-1", code: 1, errOut: "Error: accepts 2 arg(s), received 1\n"},
		{args: "cp export cp-1 - --json", code: 1, errOut: `{"code":1,"error":"standard output cannot take both the file and JSON","hint":"leave --json out"}`},
		{args: "cp export cp-1 /", code: 1, errOut: "Error: / is not a regular file\nTry: to write into it, use - and let the shell redirect\n"},
		{args: "cp export cp-1 /dev/null --force", code: 1, errOut: "Error: /dev/null is not a regular file\n"},
		{args: "cp export cp-1 /nonexistent/x", code: 1, errOut: "Error: /nonexistent/x cannot be written: no such file or directory\n"},
		{args: "cp import", code: 1, errOut: "Error: accepts 1 arg(s), received 0\n"},
		{args: "cp import /nonexistent", code: 1, errOut: "Error: open /nonexistent: no such file or directory\n"},
		{args: "cp import /", code: 1, errOut: "Error: / is a directory\n"},

		{args: "cp list sb-1", answers: []answer{{"GET /api/sandboxes/sb-1/checkpoints", 200, `[{"id":"cp-9","name":"b","status":"failed","damaged":true,"errorMsg":"x","createdAt":"2024-01-15T10:30:00Z"}]`}},
			sent: []string{"GET /api/sandboxes/sb-1/checkpoints"},
			out:  "ID    NAME  STATUS   SIZE  CREATED\ncp-9  b     damaged  -     2024-01-15T10:30:00Z\n"},

		{args: "store stats", answers: []answer{{"GET /api/store", 200, statsJSON}}, sent: []string{"GET /api/store"},
			out: "Where:        s3://b/p\nCheckpoints:  3\nContent:      30.0 MB\nStored:       3.0 MB\nRatio:        10.0\nCache:        1.0 MB of 2.0 MB\nSealed:       yes\n"},
		{args: "store stats", answers: []answer{{"GET /api/store", 200, `{"where":"/data/store"}`}}, sent: []string{"GET /api/store"},
			out: "Where:        /data/store\nCheckpoints:  0\nContent:      0.0 MB\nStored:       0.0 MB\nRatio:        -\nCache:        none\nSealed:       no\n"},
		{args: "store stats", answers: []answer{{"GET /api/store", 503, `{"error":"no such store","code":"unavailable"}`}}, sent: []string{"GET /api/store"}, code: 5, errOut: "Error: no such store\n"},
		{args: "store stats x", code: 1, errOut: "Error: unknown command \"x\" for \"oc store stats\"\n"},
		{args: "store frobnicate", code: 1, errOut: "Error: unknown command \"frobnicate\" for \"oc store\"\n"},

		{args: "store check", answers: []answer{{check, 200, reportJSON}}, sent: []string{check + " {}"},
			out: "3 checkpoints in 20 objects, 2.0 MB\n1 object, 1.0 MB, that no checkpoint needs: oc store gc frees them\nNo problems found.\n"},
		{args: "store check --read-data", answers: []answer{{check, 200, `{"checkpoints":1,"packs":1,"problems":[` + harmless + `]}`}}, sent: []string{check + ` {"readData":true}`},
			out: "1 checkpoint in 1 object, 0.0 MB\nCHECKPOINT     KEY         PROBLEM\n(another org)  packs/o2/b  its index does not match (harmless)\n"},
		{args: "store check", answers: []answer{{check, 200, `{"problems":[` + harmless + "," + problemJSON + `]}`}}, sent: []string{check + " {}"}, code: 5,
			out:    "0 checkpoints in 0 objects, 0.0 MB\nCHECKPOINT     KEY         PROBLEM\n(another org)  packs/o2/b  its index does not match (harmless)\ncp-1           packs/o1/a  is? missing\n",
			errOut: "Error: checkpoints are damaged: 1 problem\nTry: oc store repair mends what can be mended"},
		{args: "store check --data", code: 1, errOut: "Error: unknown flag: --data\n"},

		{args: "store repair", answers: []answer{{repair, 200, `{"done":["the index of packs/o2/b was made anew"],"remaining":[]}`}}, sent: []string{repair + " {}"},
			out: "the index of packs/o2/b was made anew\nNo problems found.\n"},
		{args: "store repair --json", answers: []answer{{repair, 200, `{"remaining":[` + problemJSON + `]}`}}, sent: []string{repair + " {}"}, code: 5,
			out: "{\n  \"done\": [],\n  \"remaining\": [\n    {\n      \"checkpoint\": \"cp-1\",\n      \"object\": \"o1\",\n      \"key\": \"packs/o1/a\",\n" +
				"      \"what\": \"is\\u0007 missing\",\n      \"harmless\": false\n    }\n  ]\n}\n",
			errOut: `{"code":5,"error":"checkpoints are damaged: 1 problem","hint":"`},

		{args: "store gc", answers: []answer{{gc, 200, `{"packs":3,"bytes":1048576,"checkpoints":1,"expired":2,"unknown":1}`}}, sent: []string{gc + " {}"},
			out:    "Freed 1.0 MB in 3 objects, what was left of 1 checkpoint, 2 claims of others that had expired\n",
			errOut: "Warning: 1 object in the store whose names are not the store's: left alone\n"},
		{args: "store gc --dry-run", answers: []answer{{gc, 200, `{"packs":1,"dryRun":true}`}}, sent: []string{gc + ` {"dryRun":true}`}, out: "Would free 0.0 MB in 1 object\n"},
		{args: "store gc --dry-run=x", code: 1, errOut: "Error: invalid argument \"x\" for \"--dry-run\" flag"},
		{args: "store new-key", code: 1, errOut: "Error: this program makes no keys\n"},
	})
}

// TestStorageJSON holds the documents that scripts take apart.
func TestStorageJSON(t *testing.T) {
	t.Parallel()
	for args, a := range map[string]answer{
		"store stats --json":          {"GET /api/store", 200, statsJSON},
		"store check --json":          {"POST /api/store/check", 200, reportJSON},
		"store gc --dry-run --json":   {"POST /api/store/gc", 200, `{"packs":1,"bytes":2,"checkpoints":3,"expired":4,"unknown":5,"dryRun":true}`},
		"store repair --json":         {"POST /api/store/repair", 200, `{"done":["x"],"remaining":[]}`},
		"checkpoint verify cp --json": {"POST /api/checkpoints/cp/verify", 200, `{"id":"cp","status":"verified"}`},
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			srv := newFake(t)
			srv.reply(a.route, a.status, a.body)
			got := invocation{url: srv.URL, args: strings.Fields(args)}.run(t)
			if got.code != 0 || got.errOut != "" {
				t.Errorf("%+v", got)
			}
			sameJSON(t, got.out, a.body)
		})
	}
}

func TestNewKey(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{"store new-key": "id secret\n", "store new-key --json": "{\n  \"line\": \"id secret\"\n}\n"} {
		m := New()
		m.NewKey = func() string { return "id secret\n" }
		var out, errOut buffer
		if code := m.Run(t.Context(), strings.Fields(args), strings.NewReader(""), &out, &errOut, nil); code != 0 || out.String() != want || errOut.String() != "" {
			t.Errorf("%s: %d %q %q", args, code, out.String(), errOut.String())
		}
	}
}

// exporting answers an export with the content, and then fails if broken.
func exporting(srv *fake, content string, broken bool) {
	srv.handle("GET /api/checkpoints/cp-1/export", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Expected-Bytes", "100")
		_, _ = io.WriteString(w, content)
		if broken {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
}

func TestExport(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("state", 100_000)
	for name, tc := range map[string]struct {
		before, flags string // what is there
		broken        bool
		code          int
		after, says   string
	}{
		"new":             {after: content, says: "exported to "},
		"json":            {flags: "--json", after: content, says: `"bytes": 500000`},
		"exists":          {before: "old", code: 1, after: "old", says: " exists\nTry: choose another name, or add --force\n"},
		"forced":          {before: "old", flags: "--force", after: content, says: "exported to "},
		"broken":          {broken: true, code: 1, says: "Error: the export broke off after 0.5 MB: unexpected EOF\n"},
		"broken, forced":  {before: "old", flags: "--force", broken: true, code: 1, after: "old", says: "broke off"},
		"broken, as JSON": {flags: "--json", broken: true, code: 1, says: `{"code":1,"error":"the export broke off`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, dir := newFake(t), t.TempDir()
			exporting(srv, content, tc.broken)
			file := filepath.Join(dir, "cp")
			if tc.before != "" {
				if err := os.WriteFile(file, []byte(tc.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got := invocation{url: srv.URL, args: append([]string{"cp", "export", "cp-1", file}, strings.Fields(tc.flags)...)}.run(t)
			if got.code != tc.code || !strings.Contains(got.out+got.errOut, tc.says) || (tc.code != 0) == (got.out != "") {
				t.Errorf("%d %q %q", got.code, got.out, got.errOut)
			}
			data, _ := os.ReadFile(file)
			if string(data) != tc.after {
				t.Errorf("the file has %d bytes: %.20q", len(data), data)
			}
			entries, err := os.ReadDir(dir)
			if want := min(len(tc.after), 1); err != nil || len(entries) != want {
				t.Errorf("left behind: %v %v", entries, err)
			}
			if st, err := os.Stat(file); tc.code == 0 && (err != nil || st.Mode() != 0o600) {
				t.Errorf("%v %v", st, err)
			}
		})
	}
}

// TestExportThroughLink replaces what a link points to, not the link.
func TestExportThroughLink(t *testing.T) {
	t.Parallel()
	srv, dir := newFake(t), t.TempDir()
	exporting(srv, "new", false)
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, []byte("old"), 0o600), os.Symlink("file", link)); err != nil {
		t.Fatal(err)
	}
	got := invocation{url: srv.URL, args: []string{"cp", "export", "cp-1", link, "--force"}}.run(t)
	data, err := os.ReadFile(file)
	if st, lerr := os.Lstat(link); got.code != 0 || err != nil || string(data) != "new" || lerr != nil || st.Mode().IsRegular() {
		t.Errorf("%+v %q %v", got, data, err)
	}
}

// TestExportInterrupted presses Ctrl-C in the middle.
func TestExportInterrupted(t *testing.T) {
	t.Parallel()
	srv, dir, signals := newFake(t), t.TempDir(), make(chan os.Signal, 1)
	srv.handle("GET /api/checkpoints/cp-1/export", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		signals <- os.Interrupt
		<-r.Context().Done()
	})
	got := invocation{url: srv.URL, signals: signals, args: []string{"cp", "export", "cp-1", filepath.Join(dir, "cp")}}.run(t)
	entries, err := os.ReadDir(dir)
	if got.code != ExitInterrupted || got.errOut != "Error: interrupted\n" || err != nil || len(entries) != 0 {
		t.Errorf("%+v, left behind: %v %v", got, entries, err)
	}
}

// TestExportToPipe writes nothing but the file to standard output.
func TestExportToPipe(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("state\x00\n", 50_000)
	for _, broken := range []bool{false, true} {
		srv := newFake(t)
		exporting(srv, content, broken)
		got := invocation{url: srv.URL, args: []string{"cp", "export", "cp-1", "-"}}.run(t)
		if got.out != content || (got.code != 0) != broken || (got.errOut != "") != broken {
			t.Errorf("broken %v: %d, %d bytes, %q", broken, got.code, len(got.out), got.errOut)
		}
	}
}

func TestNoExportToTerminal(t *testing.T) {
	t.Parallel()
	srv, tty := newFake(t), newTerminal(t, 80, 24).oc
	exporting(srv, "x", false)
	var errOut buffer
	code := invocation{url: srv.URL, args: []string{"cp", "export", "cp-1", "-"}}.into(t, tty, &errOut)
	if code != 1 || !strings.Contains(errOut.String(), "Error: standard output is a terminal\n") || len(srv.received()) != 0 {
		t.Errorf("%d %q", code, errOut.String())
	}
	got := invocation{url: srv.URL, stdin: tty, args: []string{"cp", "import", "-"}}.run(t)
	if got.code != 1 || !strings.Contains(got.errOut, "Error: standard input is a terminal\n") {
		t.Errorf("%+v", got)
	}
}

// failing is a reader that breaks off.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

func TestImport(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("state"), 100_000)
	file := filepath.Join(t.TempDir(), "cp")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	const done = "Checkpoint imported: cp-7f3a1b2c (status: ready)\nName: my-checkpoint\nSandbox: sb-1\n"
	for name, tc := range map[string]struct {
		args  []string
		stdin io.Reader
		uri   string
		want  result
	}{
		"file":   {[]string{file}, nil, "/api/checkpoints/import", result{0, done, ""}},
		"stdin":  {[]string{"-", "--name", "a b"}, bytes.NewReader(content), "/api/checkpoints/import?name=a+b", result{0, done, ""}},
		"broken": {[]string{"-"}, io.MultiReader(bytes.NewReader(content), failing{}), "", result{1, "", "Error: reading the file: the disk is gone\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := newFake(t)
			srv.mux.HandleFunc("POST /api/checkpoints/import", func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					http.Error(w, `{"error":"the upload broke off"}`, 400)
					return
				}
				if !bytes.Equal(body, content) || r.URL.RequestURI() != tc.uri {
					t.Errorf("%s, %d bytes", r.URL.RequestURI(), len(body))
				}
				w.WriteHeader(201)
				_, _ = io.WriteString(w, cpJSON)
			})
			got := invocation{url: srv.URL, stdin: tc.stdin, args: append([]string{"cp", "import"}, tc.args...)}.run(t)
			if got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
	srv := newFake(t)
	srv.reply("POST /api/checkpoints/import", 400, `{"error":"the file ends early","code":"invalid","hint":"export it again"}`)
	got := invocation{url: srv.URL, args: []string{"cp", "import", file, "--json"}}.run(t)
	if want := (result{3, "", `{"code":3,"error":"the file ends early","hint":"export it again"}` + "\n"}); got != want {
		t.Errorf("%+v", got)
	}
}

// TestCountsAreSilent lets a stream of counts leave no trace where there is no
// terminal.
func TestCountsAreSilent(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	srv.handle("POST /api/store/check", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: progress\ndata: {\"done\":1,\"total\":2}\n\nevent: result\ndata: "+reportJSON+"\n\n")
	})
	got := invocation{url: srv.URL, args: []string{"store", "check", "--json"}}.run(t)
	if got.code != 0 || got.errOut != "" {
		t.Errorf("%+v", got)
	}
	sameJSON(t, got.out, reportJSON)
}

// TestCountsOnTerminal watches a check from a terminal.
func TestCountsOnTerminal(t *testing.T) {
	t.Parallel()
	srv, x := newFake(t), newTerminal(t, 80, 24)
	srv.handle("POST /api/store/check", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: progress\ndata: {\"done\":1048576,\"total\":2097152}\n\n")
		_ = http.NewResponseController(w).Flush()
		eventually(t, "the count is shown", func() bool { return strings.Contains(x.drawn.String(), "Checking: 1.0 MB of 2.0 MB, ") })
		_, _ = io.WriteString(w, "event: result\ndata: "+reportJSON+"\n\n")
	})
	var out buffer
	if code := (invocation{url: srv.URL, args: []string{"store", "check"}}).into(t, &out, x.oc); code != 0 || !strings.Contains(out.String(), "No problems found.") {
		t.Errorf("%d %q", code, out.String())
	}
	eventually(t, "the line is taken away", func() bool { return strings.HasSuffix(x.drawn.String(), clearLine) })
}

// TestCheckpointCountsOnTerminal watches what makes checkpoints and sandboxes of
// them; where there is no terminal nothing of it is seen.
func TestCheckpointCountsOnTerminal(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "cp")
	if err := os.WriteFile(file, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args          []string
		route, result string
		shown         string
	}{
		"create":  {[]string{"cp", "create", "sb-1", "--name", "x"}, "POST /api/sandboxes/sb-1/checkpoints", cpJSON, "Creating checkpoint x: 1.0 MB of 2.0 MB, "},
		"spawn":   {[]string{"cp", "spawn", "cp-1"}, "POST /api/sandboxes/from-checkpoint/cp-1", sbJSON, "Fetching what cp-1 runs on: 1.0 MB of 2.0 MB, "},
		"convert": {[]string{"cp", "convert", "cp-1"}, "POST /api/checkpoints/cp-1/convert", cpJSON, "Converting cp-1: 1.0 MB of 2.0 MB, "},
		"gc":      {[]string{"store", "gc"}, "POST /api/store/gc", `{"packs":1}`, "Collecting: 1.0 MB of 2.0 MB, "},
		"import":  {[]string{"cp", "import", file}, "POST /api/checkpoints/import", cpJSON, "Storing: 1.0 MB of 2.0 MB, "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, x := newFake(t), newTerminal(t, 80, 24)
			var watched atomic.Bool
			watched.Store(true)
			srv.handle(tc.route, func(w http.ResponseWriter, r *http.Request) { // the body has been read
				if r.Header.Get("Accept") != "text/event-stream" {
					t.Errorf("it does not ask for the progress: %v", r.Header)
				}
				w.Header().Set("Content-Type", "text/event-stream")
				eventually(t, "the count is shown", func() bool {
					_, _ = io.WriteString(w, "event: progress\ndata: {\"done\":1048576,\"total\":2097152}\n\n")
					_ = http.NewResponseController(w).Flush()
					return !watched.Load() || strings.Contains(x.drawn.String(), tc.shown)
				})
				_, _ = io.WriteString(w, "event: result\ndata: "+tc.result+"\n\n")
			})
			var out buffer
			if code := (invocation{url: srv.URL, args: tc.args}).into(t, &out, x.oc); code != 0 || out.String() == "" {
				t.Errorf("%d %q", code, out.String())
			}
			eventually(t, "the line is taken away", func() bool { return strings.HasSuffix(x.drawn.String(), clearLine) })
			watched.Store(false)
			if got := (invocation{url: srv.URL, args: tc.args}).run(t); got.code != 0 || got.errOut != "" || got.out != out.String() {
				t.Errorf("without a terminal: %+v", got)
			}
		})
	}
}

// The rate is that of what is counted, not of what came before the first byte or
// of an earlier part.
func TestPace(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	p := pace{now: func() time.Time { return now }, began: now}
	for i, tc := range []struct {
		after time.Duration
		done  int64
		want  time.Duration
	}{
		{time.Second, 3, time.Second}, // it was going on when it was first heard of
		{time.Second, 4, 2 * time.Second},
		{time.Second, 1, 0}, // another part
		{time.Second, 2, time.Second},
		{time.Second, 0, 0}, // a third, which has not got anywhere
		{time.Hour, 0, 0},
		{time.Second, 5, time.Second},
	} {
		now = now.Add(tc.after)
		if got := p.took(tc.done); got != tc.want {
			t.Errorf("step %d: %v, want %v", i, got, tc.want)
		}
	}
}

func TestCountText(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	for _, tc := range []struct {
		most        string
		done, total int64
		took        time.Duration
		want        string
	}{
		{"", 0, 0, 0, "X: 0.0 MB"},
		{"", 0, 4 * mb, time.Second, "X: 0.0 MB of 4.0 MB"},
		{"", 3 * mb, 0, 2 * time.Second, "X: 3.0 MB, 1.5 MB/s"},
		{"", mb, 4 * mb, time.Second, "X: 1.0 MB of 4.0 MB, 1.0 MB/s, 4s left"},
		{"at most ", mb, 4 * mb, time.Second, "X: 1.0 MB of at most 4.0 MB, 1.0 MB/s, at most 4s left"},
		{"", 5 * mb, 4 * mb, time.Second, "X: 5.0 MB of 4.0 MB, 5.0 MB/s"},
	} {
		if got := countText("X", tc.most, tc.done, tc.total, tc.took); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}
