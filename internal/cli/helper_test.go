// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

const testKey = "osb_0123456789abcdef"

// deadline bounds every wait of a test.
const deadline = 20 * time.Second

// buffer is a writer that can be read while it is written to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(deadline)
	for !cond() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// result is what a command line did.
type result struct {
	code        int
	out, errOut string
}

// invocation is a command line to run.
type invocation struct {
	url      string
	env      []string // besides the URL, the key and HOME
	stdin    io.Reader
	signals  chan os.Signal
	patience time.Duration // 0 = as in the product
	args     []string
}

// run runs a command line in this process.
func (i invocation) run(t *testing.T) result {
	t.Helper()
	var out, errOut buffer
	code := i.into(t, &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

// into runs a command line with the writers given.
func (i invocation) into(t *testing.T, stdout, stderr io.Writer) int {
	t.Helper()
	env := []string{"HOME=" + t.TempDir(), envAPIKey + "=" + testKey}
	if i.url != "" {
		env = append(env, envAPIURL+"="+i.url)
	}
	if i.stdin == nil {
		i.stdin = strings.NewReader("")
	}
	m := New()
	if i.patience > 0 {
		m.patience = i.patience
	}
	m.notify = func(...os.Signal) (<-chan os.Signal, func()) { return i.signals, func() {} }
	return m.Run(t.Context(), i.args, i.stdin, stdout, stderr, append(env, i.env...))
}

// request is one that a fake server received.
type request struct {
	line, key, body string
}

// fake is a server that answers as it is told and keeps the requests.
type fake struct {
	*httptest.Server
	mux *http.ServeMux

	mu       sync.Mutex
	requests []request
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{mux: http.NewServeMux()}
	f.Server = httptest.NewServer(f.mux)
	t.Cleanup(f.Close)
	return f
}

// handle makes the server keep a request and let h answer.
func (f *fake) handle(pattern string, h http.HandlerFunc) {
	f.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var body []byte
		if r.Header.Get("Upgrade") == "" {
			body, _ = io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		f.mu.Lock()
		f.requests = append(f.requests, request{r.Method + " " + r.URL.RequestURI(), r.Header.Get("X-API-Key"), strings.TrimSpace(string(body))})
		f.mu.Unlock()
		h(w, r)
	})
}

// reply makes the server answer with a status and a body.
func (f *fake) reply(pattern string, status int, body string) {
	f.handle(pattern, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// received gives the requests so far, as "METHOD URI BODY".
func (f *fake) received() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, r := range f.requests {
		out = append(out, strings.TrimSpace(r.line+" "+r.body))
	}
	return out
}

// sameJSON compares documents whatever their spacing and order.
func sameJSON(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("test: %v", err)
	}
	gb, _ := json.Marshal(g)
	wb, _ := json.Marshal(w)
	if !bytes.Equal(gb, wb) {
		t.Errorf("got  %s\nwant %s", gb, wb)
	}
}
