// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// members lists an archive: names, and the content of files.
func members(t *testing.T, archive []byte) []string {
	t.Helper()
	var out []string
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSpace(h.FileInfo().Mode().String()+" "+h.Name+" "+string(data)))
	}
}

func TestPush(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	dir := filepath.Join(src, "dir")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"f": 0o640, "dir/sub/x": 0o755} {
		if err := os.WriteFile(filepath.Join(src, name), []byte("data"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(src, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	whole := []string{"drwxr-xr-x sub/", "-rwxr-xr-x sub/x data"}
	for _, tc := range []struct {
		local, remote string
		into          string // directory that the archive is unpacked into
		members       []string
		named         string // of the copy
	}{
		{"f", "/tmp/g", "/tmp", []string{"-rw-r----- g data"}, "/tmp/g"},
		{"f", "/tmp/", "/tmp", []string{"-rw-r----- f data"}, "/tmp/f"},
		{"f", "g", ".", []string{"-rw-r----- g data"}, "g"},
		{"f", ".", ".", []string{"-rw-r----- f data"}, "f"},
		{"dir", "/workspace", "/workspace", whole, "/workspace"},
		{"dir", "/workspace/", "/workspace/dir", whole, "/workspace/dir"},
		{"dir/.", "..", "../dir", whole, "../dir"},
	} {
		t.Run(tc.local+" "+tc.remote, func(t *testing.T) {
			t.Parallel()
			srv := newFake(t)
			srv.mux.HandleFunc("PUT /api/sandboxes/sb-1/files/tar", func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				if got := r.URL.Query().Get("path"); got != tc.into {
					t.Errorf("into %q", got)
				}
				if got := members(t, body); !slices.Equal(got, tc.members) {
					t.Errorf("members %q", got)
				}
				w.WriteHeader(http.StatusNoContent)
			})
			local := src + "/" + tc.local
			got := invocation{url: srv.URL, args: []string{"push", "sb-1", local, tc.remote}}.run(t)
			if want := "Pushed " + local + " to sb-1:" + tc.named + " (1 file, 0.0 MB)\n"; got != (result{0, want, ""}) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestPushErrors(t *testing.T) {
	t.Parallel()
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 8<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	srv := newFake(t)
	srv.mux.HandleFunc("PUT /api/sandboxes/sb-1/files/tar", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound) // without reading
		_, _ = io.WriteString(w, `{"error":"sandbox not found"}`)
	})
	for _, tc := range []struct {
		args   []string
		code   int
		errOut string
	}{
		{[]string{"push", "sb-1", "/nonexistent", "x"}, 1, "Error: stat /nonexistent: no such file or directory\n"},
		{[]string{"push", "sb-1", "/dev/null", "x"}, 1, "Error: /dev/null is neither a file nor a directory\n" +
			"Try: for what a pipe or a device gives: oc exec SANDBOX -- tee REMOTE < LOCAL > /dev/null\n"},
		{[]string{"push", "sb-1", big, ""}, 1, "Error: the remote path is empty\nTry: use \".\" for the home directory\n"},
		{[]string{"push", "sb-1", big, "x"}, 3, "Error: sandbox not found\n"},
		{[]string{"push", "sb-1", big}, 1, "Error: accepts 3 arg(s), received 2\nTry: oc push --help\n"},
	} {
		if got := (invocation{url: srv.URL, args: tc.args}).run(t); got != (result{tc.code, "", tc.errOut}) {
			t.Errorf("%q: %+v", tc.args, got)
		}
	}
}

// pack makes an archive of alternating names and contents; a name that ends in a
// slash is a directory, one with "->" in it a link.
func packed(t *testing.T, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Mode: 0o750, Size: int64(len(pairs[i+1])), Typeflag: tar.TypeReg}
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if name, target, ok := strings.Cut(h.Name, "->"); ok {
			h.Name, h.Linkname, h.Typeflag = name, target, tar.TypeSymlink
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPull(t *testing.T) {
	t.Parallel()
	file := packed(t, "f", "data")
	dir := packed(t, "./", "", "sub/", "", "sub/x", "data")
	for _, tc := range []struct {
		name, remote, local string
		archive             []byte
		want                string // file with the data
	}{
		{"file", "/tmp/f", "g", file, "g"},
		{"file into", "/tmp/f", "out/", file, "out/f"},
		{"directory", "/workspace/d", "e", dir, "e/sub/x"},
		{"directory into", "/workspace/d", "./", dir, "d/sub/x"},
		{"directory into the present one", "d/", ".", dir, "d/sub/x"},
		{"home into the present one", ".", ".", dir, "sub/x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			srv := newFake(t)
			srv.handle("GET /api/sandboxes/sb-1/files/tar", func(w http.ResponseWriter, r *http.Request) {
				if got := r.URL.Query().Get("path"); got != tc.remote {
					t.Errorf("path %q", got)
				}
				_, _ = w.Write(tc.archive)
			})
			root := t.TempDir()
			got := invocation{url: srv.URL, args: []string{"pull", "sb-1", tc.remote, root + "/" + tc.local}}.run(t)
			if got.code != 0 || got.errOut != "" || !strings.HasPrefix(got.out, "Pulled sb-1:"+tc.remote+" to "+root) {
				t.Errorf("%+v", got)
			}
			name := filepath.Join(root, tc.want)
			if data, err := os.ReadFile(name); err != nil || string(data) != "data" {
				t.Errorf("%q, %v", data, err)
			}
			if st, err := os.Stat(name); err != nil || st.Mode() != 0o750 {
				t.Errorf("%v, %v", st, err)
			}
		})
	}
}

// TestPullHostile: whatever a sandbox sends stays in the target.
func TestPullHostile(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		archive []byte
		code    int
		errOut  string
	}{
		"parent":     {packed(t, "./", "", "../evil", "x"), 1, "Error: the archive has the unsafe name \"../evil\"\n"},
		"link":       {packed(t, "./", "", "l->/etc/passwd", "", "f", "x"), 0, "Warning: skipped l: is a link that points outside, to /etc/passwd\n"},
		"not a tar":  {[]byte(strings.Repeat("x", 1024)), 1, "Error: unreadable archive: "},
		"cut":        {packed(t, "./", "", "f", strings.Repeat("x", 4096))[:2048], 1, "Error: write "},
		"terminal":   {packed(t, "./", "", "\x1b[2J->/x", ""), 0, "Warning: skipped ?[2J: is a link that points outside, to /x\n"},
		"nothing":    {packed(t), 1, "Error: the archive is empty\n"},
		"two things": {packed(t, "a", "1", "b", "2"), 1, "Error: the archive has the name \"b\" outside of \"a\"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := newFake(t)
			srv.handle("GET /api/sandboxes/sb-1/files/tar", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tc.archive) })
			root := t.TempDir()
			got := invocation{url: srv.URL, args: []string{"pull", "sb-1", "d", root + "/in"}}.run(t)
			if got.code != tc.code || !strings.HasPrefix(got.errOut, tc.errOut) {
				t.Errorf("%+v", got)
			}
			entries, err := os.ReadDir(root)
			if err != nil || len(entries) > 1 || (len(entries) == 1 && entries[0].Name() != "in") {
				t.Errorf("%v, %v", entries, err)
			}
		})
	}
}

func TestPullErrors(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	srv.reply("GET /api/sandboxes/sb-1/files/tar", 404, `{"error":"no such file: x"}`)
	root := t.TempDir()
	got := invocation{url: srv.URL, args: []string{"pull", "sb-1", "x", root + "/y"}}.run(t)
	if got != (result{3, "", "Error: no such file: x\n"}) {
		t.Errorf("%+v", got)
	}
	if entries, _ := os.ReadDir(root); len(entries) != 0 {
		t.Errorf("made %v", entries)
	}
}

func TestTemplateImport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "oci-layout")} {
		srv := newFake(t)
		srv.mux.HandleFunc("POST /api/templates/t/import", func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if path != dir && string(body) != "{}" {
				t.Errorf("body %q", body)
			}
			if path == dir {
				if got := members(t, body); !slices.Equal(got, []string{"-rw-r--r-- oci-layout {}"}) {
					t.Errorf("members %q", got)
				}
			}
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: build_log\ndata: {\"message\":\"unpacking\"}\n\nevent: result\ndata: {\"name\":\"t\",\"status\":\"ready\",\"sizeBytes\":1048576}\n\n")
		})
		got := invocation{url: srv.URL, args: []string{"template", "import", "t", path}}.run(t)
		if got != (result{0, "Template t ready (1.0 MB)\n", "unpacking\n"}) {
			t.Errorf("%+v", got)
		}
	}
}
