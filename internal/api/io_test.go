// SPDX-License-Identifier: Apache-2.0

package api

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

func TestFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx, dir := w.client(keyA), t.Context(), t.TempDir()
	big := make([]byte, 5<<20)
	_, _ = rand.Read(big)
	// A reader of unknown length is sent in chunks.
	if err := c.WriteFile(ctx, boxA, dir+"/a/b/big", 0o750, io.MultiReader(bytes.NewReader(big))); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteFile(ctx, boxA, dir+"/empty", 0, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"/a/b/big": big, "/empty": {}} {
		r, err := c.ReadFile(ctx, boxA, dir+name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if res := w.run("stat -c %a " + dir + "/a/b/big " + dir + "/empty"); res.Stdout != "750\n644\n" {
		t.Errorf("modes %q", res.Stdout)
	}
	if err := c.Mkdir(ctx, boxA, dir+"/x/y"); err != nil {
		t.Fatal(err)
	}
	list, err := c.ListFiles(ctx, boxA, dir)
	if want := []client.FileInfo{{Name: "a", IsDir: true, Path: dir + "/a"}, {Name: "empty", Path: dir + "/empty"}, {Name: "x", IsDir: true, Path: dir + "/x"}}; err != nil ||
		!slices.EqualFunc(list, want, func(a, b client.FileInfo) bool { return a.Name == b.Name && a.IsDir == b.IsDir && a.Path == b.Path }) {
		t.Errorf("list %+v, %v", list, err)
	}
	for range 2 { // the second time it is not there
		if err := c.RemoveFile(ctx, boxA, dir+"/a"); err != nil {
			t.Error(err)
		}
	}
	p := "/api/sandboxes/" + boxA + "/files?path="
	for _, x := range []struct {
		method, path string
		status       int
	}{
		{"GET", p + url.QueryEscape(dir+"/a"), 404}, {"GET", p + dir, 400}, {"GET", p, 400}, {"PUT", p, 400}, {"DELETE", p, 400},
		{"PUT", p + "/x&mode=999", 400}, {"GET", p + "%00", 400}, {"PUT", p + dir + "/ok", 204}, {"GET", p + dir + "/ok", 200},
		{"GET", "/api/sandboxes/" + boxA + "/files/list?path=" + dir + "/none", 404},
		{"GET", "/api/sandboxes/" + boxA + "/files/tar?path=" + dir + "/none", 404},
		{"GET", "/api/sandboxes/" + goneA + "/files?path=/x", 410},
		{"POST", "/api/sandboxes/" + boxA + "/files/mkdir", 400},
	} {
		if status, body := w.do(x.method, x.path, ""); status != x.status {
			t.Errorf("%s %s: %d %s, want %d", x.method, x.path, status, body, x.status)
		} else if status >= 400 {
			checkErrorBody(t, body)
		}
	}
}

func TestTar(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx, dir := w.client(keyA), t.Context(), t.TempDir()
	w.run("cd " + dir + " && mkdir -p src/deep && echo one > src/one && echo two > src/deep/two && chmod 700 src/deep/two && ln -s one src/link")
	r, err := c.PullTar(ctx, boxA, dir+"/src")
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PushTar(ctx, boxA, dir+"/dst", bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	if res := w.run("cd " + dir + " && diff -r src dst && stat -c %a dst/deep/two && readlink dst/link"); res.Stdout != "700\none\n" {
		t.Errorf("%+v", res)
	}
	err = c.PushTar(ctx, boxA, dir+"/dst", strings.NewReader("this is no archive"+strings.Repeat("x", 2000)))
	var e *client.Error
	if !errors.As(err, &e) || e.Status != 400 {
		t.Errorf("no archive: %v", err)
	}
	names := []string{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	if len(names) < 4 {
		t.Errorf("archive of %q", names)
	}
}

// TestBrokenUpload checks that a body that breaks off makes no file.
func TestBrokenUpload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	broken := io.MultiReader(strings.NewReader("half"), iotestErr{})
	if err := w.client(keyA).WriteFile(t.Context(), boxA, dir+"/f", 0, broken); err == nil {
		t.Fatal("no error")
	}
	if status, _ := w.do("GET", "/api/sandboxes/"+boxA+"/files?path="+dir+"/f", ""); status != 404 {
		t.Errorf("status %d", status)
	}
}

type iotestErr struct{}

func (iotestErr) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestSignedURLs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx, file := w.client(keyA), t.Context(), t.TempDir()+"/with space"
	up, err := c.UploadURL(ctx, boxA, client.SignedURLRequest{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	down, err := c.DownloadURL(ctx, boxA, client.SignedURLRequest{Path: file, ExpiresIn: 60})
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(down.ExpiresAt); d < 50*time.Second || d > 61*time.Second {
		t.Errorf("expires in %v", d)
	}
	old := grant{orgID: "org-a", sandboxID: boxA, path: file, op: "download", expires: 1}
	expired := w.url + "/api/sandboxes/" + boxA + "/files/download?" + url.Values{
		"path": {file}, "org": {"org-a"}, "expires": {"1"}, "signature": {old.signature([]byte(strings.Repeat("k", 32)))}}.Encode()
	for _, x := range []struct {
		method, url string
		status      int
		want        string
	}{
		{"PUT", up.URL, 204, ""},
		{"GET", down.URL, 200, "content"},
		{"PUT", strings.Replace(down.URL, "/download?", "/upload?", 1), 403, ""},
		{"GET", strings.Replace(up.URL, "/upload?", "/download?", 1), 403, ""},
		{"GET", strings.Replace(down.URL, "space", "spice", 1), 403, ""},
		{"GET", strings.Replace(down.URL, "org-a", "org-b", 1), 403, ""},
		{"GET", strings.Replace(down.URL, boxA, boxB, 1), 403, ""},
		{"GET", strings.Replace(down.URL, "expires=", "expires=9", 1), 403, ""},
		{"GET", strings.Replace(down.URL, "expires=", "expires=x", 1), 400, ""},
		{"GET", strings.Replace(down.URL, "signature=", "signature=00", 1), 400, ""},
		{"GET", expired, 403, "expired"},
		{"GET", w.url + "/api/sandboxes/" + boxA + "/files/download", 400, ""},
	} {
		req, _ := http.NewRequestWithContext(ctx, x.method, x.url, strings.NewReader("content"))
		if status, body := w.send(req); status != x.status || !strings.Contains(body, x.want) {
			t.Errorf("%s %s: %d %s", x.method, x.url, status, body)
		}
	}
	for _, r := range []client.SignedURLRequest{{Path: ""}, {Path: "/x", ExpiresIn: 86401}, {Path: "/x", ExpiresIn: -1}} {
		if _, err := c.DownloadURL(ctx, boxA, r); err == nil {
			t.Errorf("%+v: no error", r)
		}
	}
}

func TestPTY(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx := w.client(keyA), t.Context()
	status, body := w.do("POST", "/api/sandboxes/"+boxA+"/pty", "{}")
	var s client.PTYSession
	if err := json.Unmarshal([]byte(body), &s); err != nil || status != 201 || s.SandboxID != boxA {
		t.Fatalf("%d %s", status, body)
	}
	conn := w.dial("/sandboxes/" + boxA + "/pty/" + s.SessionID)
	expect := func(want string) {
		t.Helper()
		for out := ""; !strings.Contains(out, want); {
			typ, msg, err := conn.Read(ctx)
			if err != nil || typ != websocket.MessageBinary {
				t.Fatalf("no %q: %v %v; got %q", want, typ, err, out)
			}
			out += string(msg)
		}
	}
	send := func(typ websocket.MessageType, text string) {
		t.Helper()
		if err := conn.Write(ctx, typ, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	send(websocket.MessageText, "stty size; echo $TE")
	send(websocket.MessageBinary, "RM-$FROM_BOX\n")
	expect("24 80\r\nxterm-256color-1")
	if err := c.ResizePTY(ctx, boxA, s.SessionID, 100, 40); err != nil {
		t.Fatal(err)
	}
	send(websocket.MessageText, "stty size\n")
	expect("40 100\r\n")
	if err := c.ResizePTY(ctx, boxA, s.SessionID, -1, 40); err == nil {
		t.Error("a negative size was taken")
	}
	send(websocket.MessageText, "exit\n")
	for {
		if _, _, err := conn.Read(ctx); err != nil {
			if websocket.CloseStatus(err) != 1000 {
				t.Error(err)
			}
			break
		}
	}
	for range 2 {
		if err := c.ClosePTY(ctx, boxA, s.SessionID); err != nil {
			t.Errorf("close of an ended terminal: %v", err)
		}
	}
}

// TestPTYStream drives a terminal through the SDK and ends it from outside.
func TestPTYStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx := w.client(keyA), t.Context()
	s, err := c.OpenPTY(ctx, boxA, client.PTYRequest{Cols: 10, Rows: 5, Shell: "/bin/cat"})
	if err != nil {
		t.Fatal(err)
	}
	term, err := c.AttachPTY(ctx, boxA, s.SessionID)
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	if _, err := io.WriteString(term, "hi\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8) // echoed, then copied
	if _, err := io.ReadFull(term, buf); err != nil || string(buf) != "hi\r\nhi\r\n" {
		t.Fatalf("%q %v", buf, err)
	}
	if err := c.ClosePTY(ctx, boxA, s.SessionID); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(term); err != nil || len(rest) != 0 {
		t.Errorf("%q %v", rest, err)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx := w.client(keyA), t.Context()
	var got []string
	progress := func(l string) { got = append(got, l) }

	sb, err := c.CreateSandbox(ctx, client.CreateSandboxRequest{}, progress)
	if err != nil || sb.ID == "" || len(got) != 0 {
		t.Errorf("quiet: %+v %v %q", sb, err, got)
	}
	w.failWith(fault.New(fault.Conflict, "not now").WithHint("later"))
	_, err = c.CreateSandbox(ctx, client.CreateSandboxRequest{}, progress)
	checkError(t, err, 409, "not now", "later")

	w.lines = []string{"retrieving packages 34 %", "line\nbreak \"quoted\""}
	sb, err = c.CreateSandbox(ctx, client.CreateSandboxRequest{}, progress)
	if err != nil || sb.ID == "" || !slices.Equal(got, w.lines) {
		t.Errorf("%+v %v %q", sb, err, got)
	}
	w.failWith(fault.New(fault.Unavailable, "mkfs.erofs is not installed").WithHint("apt-get install erofs-utils"))
	_, err = c.BuildTemplate(ctx, "base", progress)
	checkError(t, err, 503, "mkfs.erofs is not installed", "apt-get install erofs-utils")
	got = nil
	tpl, err := c.BuildTemplate(ctx, "base", progress)
	if err != nil || tpl.Name != "base" || !slices.Equal(got, w.lines) {
		t.Errorf("%+v %v %q", tpl, err, got)
	}

	archive := bytes.Repeat([]byte("archive"), 300_000)
	tpl, err = c.ImportTemplate(ctx, "mine", bytes.NewReader(archive), progress)
	if err != nil || tpl.Name != "mine" || !bytes.Equal(w.imported, archive) {
		t.Errorf("%+v %v, %d bytes", tpl, err, len(w.imported))
	}
	if _, err := c.ImportTemplate(ctx, "mine", io.MultiReader(strings.NewReader("x"), iotestErr{}), nil); err == nil {
		t.Error("a broken archive was imported")
	}

	req, _ := http.NewRequestWithContext(ctx, "POST", w.url+"/api/sandboxes", nil)
	req.Header.Set("X-API-Key", keyA)
	req.Header.Set("Accept", "text/event-stream")
	if status, body := w.send(req); status != 200 || !strings.HasPrefix(body, "event: build_log\ndata: {\"step\":1,\"type\":\"log\",\"message\":\"retrieving packages 34 %\"}\n\n") ||
		!strings.Contains(body, "\n\nevent: result\ndata: {\"id\":") {
		t.Errorf("%d %q", status, body)
	}
}

// checkError checks an error that the server reported.
func checkError(t *testing.T, err error, status int, message, hint string) {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Status != status || e.Message != message || e.Hint != hint {
		t.Errorf("%#v, want %d %s (%s)", err, status, message, hint)
	}
}
