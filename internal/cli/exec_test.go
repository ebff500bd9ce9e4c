// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/opencomputer/oc/client"
)

// TestExecSends holds the request and the ways to write the command.
func TestExecSends(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		args string
		want string // of the request, "" = refused
	}{
		{"exec sb-1 -- ls -la", `{"cmd":"ls","args":["-la"]}`},
		{"exec sb-1 -- ls -- --json", `{"cmd":"ls","args":["--","--json"]}`},
		{"exec sb-1 ls", `{"cmd":"ls"}`},
		{"exec sb-1 ./run.sh a b", `{"cmd":"./run.sh","args":["a","b"]}`},
		{"exec --cwd /x sb-1 ls", `{"cmd":"ls","cwd":"/x"}`},
		{"exec sb-1 --cwd /x --env A=1 --env B=2,3 --timeout 5 --user root -- ls", `{"cmd":"ls","cwd":"/x","envs":{"A":"1","B":"2,3"},"timeout":5,"user":"root"}`},
		{"exec sb-1 -- list sb-2", `{"cmd":"list","args":["sb-2"]}`},
		{"exec sb-1 ls -la", ""},
		{"exec sb-1 grep --json x", ""},
		{"exec sb-1 sleep --timeout 5", ""},
		{"exec sb-1 ls -- x", ""},
		{"exec -- sb-1 ls", ""},
		{"exec sb-1 --timeout -1 -- ls", ""},
		{"exec sb-1 --env x -- ls", ""},
	} {
		t.Run(tc.args, func(t *testing.T) {
			t.Parallel()
			srv := newFakeExec(t, func(a *attachment) { a.begin("t", 0, 0); a.exit(0) })
			got := invocation{url: srv.URL, args: strings.Fields(tc.args)}.run(t)
			sent := srv.fake.received()
			if tc.want == "" {
				if got.code != 1 || len(sent) != 0 || !strings.Contains(got.errOut, "rror") {
					t.Errorf("%+v, sent %q", got, sent)
				}
				return
			}
			if got.code != 0 || len(sent) == 0 {
				t.Fatalf("%+v, sent %q", got, sent)
			}
			var body map[string]any
			if err := json.Unmarshal([]byte(strings.TrimPrefix(sent[0], "POST /api/sandboxes/sb-1/exec ")), &body); err != nil {
				t.Fatal(err)
			}
			if key, _ := body["key"].(string); len(key) < 16 {
				t.Errorf("key %q", key)
			}
			delete(body, "key")
			text, _ := json.Marshal(body)
			sameJSON(t, string(text), tc.want)
		})
	}
}

func TestExecStreamsAndExits(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]int{0: 0, 7: 7, 137: 137, -1: 255} {
		srv := newFakeExec(t, func(a *attachment) {
			a.begin("t", 0, 0)
			a.stdout("out\x00\xff\n")
			a.stderr("err\n")
			a.stdout("more")
			a.exit(code)
		})
		got := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
		if got != (result{want, "out\x00\xff\nmore", "err\n"}) {
			t.Errorf("%d: %+v", code, got)
		}
	}
}

func TestExecForwardsInput(t *testing.T) {
	t.Parallel()
	input := strings.Repeat("0123456789", 100_000)
	srv := newFakeExec(t, func(a *attachment) {
		a.begin("t", 0, 0)
		if got := a.input(-1); got != input+"<end>" {
			t.Errorf("got %d bytes of input", len(got))
		}
		a.exit(0)
	})
	got := invocation{url: srv.URL, stdin: strings.NewReader(input), args: []string{"exec", "sb-1", "--", "cat"}}.run(t)
	if got.code != 0 {
		t.Errorf("%+v", got)
	}
}

// TestExecEndsBeforeItsInput leaves input unread.
func TestExecEndsBeforeItsInput(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	defer w.Close()
	srv := newFakeExec(t, func(a *attachment) { a.begin("t", 0, 0); a.exit(3) })
	got := invocation{url: srv.URL, stdin: r, args: []string{"exec", "sb-1", "--", "true"}}.run(t)
	if got.code != 3 {
		t.Errorf("%+v", got)
	}
}

func TestExecJSONAndWait(t *testing.T) {
	t.Parallel()
	script := func(a *attachment) { a.begin("t", 0, 0); a.stdout("o\n"); a.stderr("e\n"); a.exit(4) }
	srv := newFakeExec(t, script, script, func(a *attachment) { a.begin("t", 0, 0); a.stdout("<&>"); a.exit(-1) })
	got := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--json", "--", "x"}}.run(t)
	if want := "{\n  \"exitCode\": 4,\n  \"stdout\": \"o\\n\",\n  \"stderr\": \"e\\n\"\n}\n"; got != (result{4, want, ""}) {
		t.Errorf("%+v", got)
	}
	got = invocation{url: srv.URL, args: []string{"exec", "sb-1", "--wait", "--", "x"}}.run(t)
	if got != (result{4, "o\n", "e\n"}) {
		t.Errorf("%+v", got)
	}
	got = invocation{url: srv.URL, args: []string{"exec", "sb-1", "--json", "--", "x"}}.run(t)
	if got.code != 255 || !strings.Contains(got.out, `"exitCode": -1`) || !strings.Contains(got.out, "<&>") {
		t.Errorf("%+v", got)
	}
}

// TestExecSaysThatItTimedOut because the exit code is that of any killed command.
func TestExecSaysThatItTimedOut(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"--json=false", "--wait", "--json"} {
		srv := newFakeExec(t, func(a *attachment) { a.begin("t", 0, 0); a.stdout("o\n"); a.timeOut() })
		got := invocation{url: srv.URL, args: []string{"exec", "sb-1", mode, "--timeout", "1", "--", "x"}}.run(t)
		if got.code != 137 || got.errOut != "Warning: the command was killed: its timeout has passed\n" {
			t.Errorf("%s: %+v", mode, got)
		}
	}
}

func TestExecDetach(t *testing.T) {
	t.Parallel()
	srv := newFakeExec(t)
	got := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--detach", "--", "sleep", "9"}}.run(t)
	if want := "Session s1 created (command: sleep 9)\nAttach with: oc exec attach sb-1 s1\n"; got != (result{0, want, ""}) {
		t.Errorf("%+v", got)
	}
	got = invocation{url: srv.URL, args: []string{"exec", "sb-1", "--detach", "--json", "--", "sleep", "9"}}.run(t)
	if got.code != 0 || !strings.Contains(got.out, `"sessionID": "s1"`) {
		t.Errorf("%+v", got)
	}
}

func TestExecAttach(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	srv := newFakeExec(t, func(a *attachment) {
		a.position("t", 1000, 5)
		a.stdout("old ")
		a.send([]byte{client.FrameScrollback})
		a.stdout(a.input(3))
		_ = w.Close() // the end of our input is not the session's
		a.exit(2)
	})
	go func() { _, _ = io.WriteString(w, "new") }()
	got := invocation{url: srv.URL, stdin: r, args: []string{"exec", "attach", "sb-1", "s1"}}.run(t)
	if got != (result{2, "old new", ""}) {
		t.Errorf("%+v", got)
	}
	if !slices.Equal(srv.queries, []string{"offsets=1"}) {
		t.Errorf("queries %q", srv.queries)
	}
}

func TestExecAttachErrors(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	srv.reply("GET /api/sandboxes/sb-1/exec/s1", 404, `{"error":"session not found"}`)
	got := invocation{url: srv.URL, args: []string{"exec", "attach", "sb-1", "s1"}}.run(t)
	if got != (result{3, "", "Error: attach failed: session not found\n"}) {
		t.Errorf("%+v", got)
	}
	got = invocation{url: newFakeExec(t).URL, args: []string{"exec", "attach", "sb-1", "s1"}}.run(t)
	if got.code != 5 || !strings.HasPrefix(got.errOut, "Error: attach failed: ") {
		t.Errorf("%+v", got)
	}
}

// TestExecContinues breaks the connection in each way it can break: not a byte
// of output or input is lost or doubled.
func TestExecContinues(t *testing.T) {
	t.Parallel()
	srv := newFakeExec(t,
		func(a *attachment) {
			a.begin("t", 0, 0)
			a.stdout("abc")
			a.silent = true
			if got := a.input(6); got != "input " {
				t.Errorf("input %q", got)
			}
			a.stderr("de") // and the connection breaks
		},
		func(a *attachment) {
			a.begin("t", 5, 3) // of the input only three bytes had arrived
			if got := a.input(3); got != "ut " {
				t.Errorf("sent again: %q", got)
			}
			a.stdout("fgh")
			_ = a.conn.Close(client.CloseRetry, "the server stops")
		},
		func(a *attachment) {
			a.begin("t", 8, 6)
			if got := a.input(-1); got != "<end>" {
				t.Errorf("input %q", got)
			}
			_ = a.conn.Close(websocket.StatusNormalClosure, "") // without an exit
		},
		func(a *attachment) {
			a.begin("t", 8, 6)
			if got := a.input(-1); got != "<end>" { // told again: it may not have arrived
				t.Errorf("input %q", got)
			}
			a.stdout("!")
			a.exit(9)
		})
	got := invocation{url: srv.URL, stdin: strings.NewReader("input "), args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got != (result{9, "abcfgh!", "de"}) {
		t.Errorf("%+v", got)
	}
	want := []string{"offsets=1", "from=5&offsets=1&timeline=t", "from=8&offsets=1&timeline=t", "from=8&offsets=1&timeline=t"}
	if !slices.Equal(srv.queries, want) {
		t.Errorf("attached with %q", srv.queries)
	}
}

// TestExecOverRestore goes on in the timeline that an in-place restore began.
func TestExecOverRestore(t *testing.T) {
	t.Parallel()
	srv := newFakeExec(t,
		func(a *attachment) {
			a.begin("t", 0, 0)
			a.stdout("12345")
			if got := a.input(-1); got != "in<end>" {
				t.Errorf("input %q", got)
			}
			a.position("u", 2, 1) // back at 2, with less input taken
			if got := a.input(-1); got != "<end>" {
				t.Errorf("input after the restore %q", got)
			}
			a.stdout("abc")
		},
		func(a *attachment) {
			a.begin("u", 5, 1)
			a.exit(0)
		})
	got := invocation{url: srv.URL, stdin: strings.NewReader("in"), args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got != (result{0, "12345abc", ""}) {
		t.Errorf("%+v", got)
	}
	if want := "from=5&offsets=1&timeline=u"; len(srv.queries) != 2 || srv.queries[1] != want {
		t.Errorf("attached with %q", srv.queries)
	}
}

// TestExecInputOverRestore sends again what the session had not taken when it
// was restored, by the count of the checkpoint.
func TestExecInputOverRestore(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	srv := newFakeExec(t, func(a *attachment) {
		a.begin("t", 0, 100)
		_, _ = io.WriteString(w, "one\n")
		if got := a.input(4); got != "one\n" {
			t.Errorf("input %q", got)
		}
		a.silent = true
		_, _ = io.WriteString(w, "two\n")
		_ = w.Close()
		if got := a.input(-1); got != "two\n<end>" {
			t.Errorf("input %q", got)
		}
		a.position("u", 0, 40)
		if got := a.input(-1); got != "two\n<end>" {
			t.Errorf("input after the restore %q", got)
		}
		a.exit(0)
	})
	got := invocation{url: srv.URL, stdin: r, args: []string{"exec", "sb-1", "--", "cat"}}.run(t)
	if got.code != 0 {
		t.Errorf("%+v", got)
	}
}

// TestExecInputIsBounded reads no more than fits while the session takes none.
func TestExecInputIsBounded(t *testing.T) {
	t.Parallel()
	var read counter
	srv := newFakeExec(t, func(a *attachment) {
		a.begin("t", 0, 0)
		a.silent = true
		if got := len(a.input(inputWindow)); got < inputWindow {
			t.Errorf("%d bytes", got)
		}
		a.exit(0)
	})
	got := invocation{url: srv.URL, stdin: io.TeeReader(endless{}, &read), args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got.code != 0 || read > inputWindow+2*inputChunk {
		t.Errorf("%+v, read %d", got, read)
	}
}

// endless is a reader without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestExecSaysWhatWasLost(t *testing.T) {
	t.Parallel()
	srv := newFakeExec(t,
		func(a *attachment) { a.begin("t", 0, 0); a.stdout("abc") },
		func(a *attachment) { a.begin("t", 100, 0); a.stdout("z"); a.exit(0) })
	got := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got != (result{0, "abcz", "Warning: 97 bytes of output were dropped while nobody could read them\n"}) {
		t.Errorf("%+v", got)
	}
}

// TestExecSessionLost is told by the server: there is nothing to wait for.
func TestExecSessionLost(t *testing.T) {
	t.Parallel()
	srv := newFakeExec(t, func(a *attachment) {
		a.begin("t", 0, 0)
		_ = a.conn.Close(client.CloseSessionLost, "session ended: the sandbox was restored to a checkpoint that does not know it")
	})
	got := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got.code != 255 || got.errOut != "Error: session ended: the sandbox was restored to a checkpoint that does not know it\n" {
		t.Errorf("%+v", got)
	}
}

// TestExecGivesUp when the server does not come back.
func TestExecGivesUp(t *testing.T) {
	t.Parallel()
	srv := newFakeExec(t, func(a *attachment) { a.begin("t", 0, 0); a.stdout("abc") })
	got := invocation{url: srv.URL, patience: time.Second, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	want := "Error: lost the connection for more than 1s: server answered 503 Service Unavailable\nTry: oc exec attach sb-1 s1\n"
	if got != (result{255, "abc", want}) {
		t.Errorf("%+v", got)
	}
	if len(srv.queries) < 3 {
		t.Errorf("tried %q", srv.queries)
	}
}

func TestExecStartRefused(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	srv.reply("POST /api/sandboxes/sb-1/exec", 410, `{"error":"sandbox sb-1 has been stopped"}`)
	got := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got != (result{3, "", "Error: sandbox sb-1 has been stopped\n"}) {
		t.Errorf("%+v", got)
	}
}

// TestExecStartIsRepeated with the same key when the answer was lost.
func TestExecStartIsRepeated(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	var calls atomic.Int32
	srv.handle("POST /api/sandboxes/sb-1/exec", func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, `{"sessionID":"s1"}`)
	})
	got := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--detach", "--", "x"}}.run(t)
	sent := srv.received()
	if got.code != 0 || len(sent) != 2 || sent[0] != sent[1] {
		t.Errorf("%+v, sent %q", got, sent)
	}
}

func TestExecInterrupt(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal)
	srv := newFakeExec(t, nil)
	srv.scripts = []func(*attachment){func(a *attachment) {
		a.begin("t", 0, 0)
		signals <- syscall.SIGINT
		eventually(t, "SIGINT is forwarded", func() bool { return slices.Equal(srv.received(), []int{2}) })
		a.stdout("stopping")
		a.exit(130)
	}}
	got := invocation{url: srv.URL, signals: signals, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got != (result{130, "stopping", "^C sent SIGINT (press again to force-detach)\n"}) {
		t.Errorf("%+v", got)
	}
}

func TestExecSecondInterruptDetaches(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal)
	srv := newFakeExec(t, func(a *attachment) {
		a.begin("t", 0, 0)
		signals <- syscall.SIGINT
		signals <- syscall.SIGINT
		a.gone()
	})
	got := invocation{url: srv.URL, signals: signals, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got.code != 255 || got.errOut != "^C sent SIGINT (press again to force-detach)\n" {
		t.Errorf("%+v", got)
	}
	if slices.Contains(srv.received(), 9) {
		t.Error("killed")
	}
}

func TestExecForwardsSignals(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal)
	srv := newFakeExec(t, nil)
	srv.scripts = []func(*attachment){func(a *attachment) {
		a.begin("t", 0, 0)
		for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGTERM} {
			signals <- sig
			eventually(t, sig.String(), func() bool { got := srv.received(); return len(got) == i+1 && got[i] == int(sig) })
		}
		a.exit(143)
	}}
	got := invocation{url: srv.URL, signals: signals, args: []string{"exec", "sb-1", "--", "x"}}.run(t)
	if got != (result{143, "", ""}) {
		t.Errorf("%+v", got)
	}
}

// TestExecClosedPipe ends the remote command as "| head" ends a local one.
func TestExecClosedPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	srv := newFakeExec(t, func(a *attachment) { a.begin("t", 0, 0); a.stdout("y\n"); a.gone() })
	var errOut buffer
	code := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--", "yes"}}.into(t, w, &errOut)
	if code != 141 || errOut.String() != "" || !slices.Equal(srv.received(), []int{13}) {
		t.Errorf("%d %s %v", code, errOut.String(), srv.received())
	}
}

// TestExecLargeOutput passes much more on than may be held.
func TestExecLargeOutput(t *testing.T) {
	t.Parallel()
	const chunk, count = 512 << 10, 200
	srv := newFakeExec(t, func(a *attachment) {
		a.begin("t", 0, 0)
		data := strings.Repeat("x", chunk)
		for range count {
			a.stdout(data)
		}
		a.exit(0)
	})
	var n counter
	code := invocation{url: srv.URL, args: []string{"exec", "sb-1", "--", "x"}}.into(t, &n, io.Discard)
	if code != 0 || n != chunk*count {
		t.Errorf("%d, %d bytes", code, n)
	}
}

// counter counts the bytes written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func TestInterruptedCall(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal)
	srv := newFake(t)
	srv.handle("POST /api/sandboxes/sb-1/checkpoints", func(_ http.ResponseWriter, r *http.Request) {
		signals <- syscall.SIGINT
		<-r.Context().Done()
	})
	srv.handle("POST /api/sandboxes", func(_ http.ResponseWriter, r *http.Request) {
		signals <- syscall.SIGINT
		<-r.Context().Done()
	})
	got := invocation{url: srv.URL, signals: signals, args: []string{"create"}}.run(t)
	if got != (result{130, "", "Error: interrupted\n"}) {
		t.Errorf("%+v", got)
	}
	got = invocation{url: srv.URL, signals: signals, args: []string{"cp", "create", "sb-1", "--name", "x"}}.run(t)
	if got != (result{130, "", "Error: interrupted\nTry: the server goes on with it: oc checkpoint list sb-1 shows what it has become\n"}) {
		t.Errorf("%+v", got)
	}
}
