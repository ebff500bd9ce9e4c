// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/cli/config"
)

func TestConfigSetAndShow(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	oc := func(args ...string) result {
		return invocation{env: []string{"HOME=" + home, envAPIKey + "="}, args: args}.run(t)
	}
	if got := oc("config", "set", "api-key", "osb_0123456789abcdef"); got.code != 0 || got.out != "Config api-key updated.\n" {
		t.Errorf("%+v", got)
	}
	if got := oc("config", "set", "api-url", "http://h:1"); got.code != 0 || got.out != "Config api-url updated.\n" {
		t.Errorf("%+v", got)
	}
	if got := oc("config", "set", "api-url", "h:1"); got.code != 1 || !strings.Contains(got.errOut, "invalid API URL") {
		t.Errorf("%+v", got)
	}
	if got := oc("config", "set", "color", "red"); got.code != 1 || got.errOut != "Error: unknown config key: color (valid: api-key, api-url)\n" {
		t.Errorf("%+v", got)
	}
	want := "API URL:     http://h:1\nAPI Key:     osb_****cdef\nConfig file: " + config.Path(home) + "\n"
	if got := oc("config", "show"); got.code != 0 || got.out != want {
		t.Errorf("%+v", got)
	}
	got := oc("config", "show", "--json")
	sameJSON(t, got.out, `{"apiUrl":"http://h:1","apiKey":"osb_****cdef","configFile":"`+config.Path(home)+`"}`)
	if st, err := os.Stat(config.Path(home)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestMasked(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{"": "", "12345678": "12345678", "123456789": "1234****6789"} {
		if got := masked(key); got != want {
			t.Errorf("%q: %q", key, got)
		}
	}
}

// TestPrecedence: flag, environment, file, default.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if err := (config.File{APIURL: "http://file", APIKey: "key-of-the-file"}).Save(home); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, home string
		env        []string
		args       []string
		url, key   string
	}{
		{name: "default", home: t.TempDir(), url: config.DefaultAPIURL, key: "(not set)"},
		{name: "file", home: home, url: "http://file", key: "key-****file"},
		{name: "environment", home: home, env: []string{"OPENCOMPUTER_API_URL=http://env", "OPENCOMPUTER_API_KEY=key-of-the-envi"}, url: "http://env", key: "key-****envi"},
		{name: "flag", home: home, env: []string{"OPENCOMPUTER_API_URL=http://env", "OPENCOMPUTER_API_KEY=key-of-the-envi"},
			args: []string{"--api-url", "http://flag", "--api-key=key-of-the-flag"}, url: "http://flag", key: "key-****flag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			env := append([]string{"HOME=" + tc.home, envAPIKey + "=", envAPIURL + "="}, tc.env...)
			got := invocation{env: env, args: append(tc.args, "config", "show")}.run(t)
			want := "API URL:     " + tc.url + "\nAPI Key:     " + tc.key + "\nConfig file: " + config.Path(tc.home) + "\n"
			if got.code != 0 || got.out != want {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestNoKeyWarns(t *testing.T) {
	t.Parallel()
	srv := newFake(t)
	srv.reply("GET /api/sandboxes", 200, "[]")
	got := invocation{url: srv.URL, env: []string{envAPIKey + "="}, args: []string{"ls"}}.run(t)
	want := "Warning: no API key configured. Set OPENCOMPUTER_API_KEY or run 'oc config set api-key <key>'\n"
	if got.code != 0 || got.errOut != want || got.out != "No sandboxes found.\n" {
		t.Errorf("%+v", got)
	}
	if srv.requests[0].key != "" {
		t.Errorf("sent the key %q", srv.requests[0].key)
	}
}

func TestBrokenConfigIsSaid(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if err := (config.File{}).Save(home); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config.Path(home), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := invocation{env: []string{"HOME=" + home}, args: []string{"ls"}}.run(t)
	if got.code != 1 || !strings.Contains(got.errOut, config.Path(home)) {
		t.Errorf("%+v", got)
	}
}
