// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_SESSION_TOKEN": "token",
		"AWS_REGION": "eu-west-3", "AWS_ENDPOINT_URL": "https://all.example", "AWS_ENDPOINT_URL_S3": "https://s3.example:8443",
	}
	c, err := Config{URL: "s3://b/p/q/"}.resolve(t.Context(), func(name string) string { return env[name] })
	want := Config{URL: "s3://b/p/q/", Endpoint: "https://s3.example:8443", Region: "eu-west-3", AccessKey: "id",
		SecretKey: "very-secret", SessionToken: "token", Timeout: time.Minute}
	if err != nil || c != want {
		t.Fatalf("%#v, %v", c, err)
	}
	// It goes to another process whole, which needs no environment.
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var got Config
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if got, err = got.resolve(t.Context(), func(string) string { return "" }); err != nil || got != want {
		t.Errorf("%#v, %v", got, err)
	}
	p, err := c.parse()
	if err != nil || p != (place{bucket: "b", prefix: "p/q/", host: "s3.example:8443", secure: true, own: true}) {
		t.Errorf("%+v, %v", p, err)
	}
	// What is said explicitly comes first.
	own := Config{URL: "s3://b", Endpoint: "http://h:1", Region: "r", AccessKey: "mine", SecretKey: "s", Timeout: 1}
	if c, err := own.resolve(t.Context(), func(name string) string { return env[name] }); err != nil || c != own {
		t.Errorf("%#v, %v", c, err)
	}
}

// No way of printing a configuration shows a secret.
func TestConfigHidesSecrets(t *testing.T) {
	t.Parallel()
	c := Config{URL: "s3://b", AccessKey: "id", SecretKey: "very-secret", SessionToken: "very-secret"}
	var out strings.Builder
	fmt.Fprintf(&out, "%v %+v %s %v", c, c, c, &c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("config", "config", c)
	if strings.Contains(out.String(), "very-secret") {
		t.Error(out.String())
	}
}

func TestResolveFaults(t *testing.T) {
	t.Parallel()
	keys := map[string]string{"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "s"}
	for _, c := range []struct {
		config Config
		env    map[string]string
	}{
		{Config{}, keys},
		{Config{URL: "https://b"}, keys},
		{Config{URL: "s3://"}, keys},
		{Config{URL: "s3://b/../c"}, keys},
		{Config{URL: "s3://id:key@b"}, keys},
		{Config{URL: "s3://b", Endpoint: "example.com:9000"}, keys},
		{Config{URL: "s3://b", Endpoint: "http://example.com/path"}, keys},
		{Config{URL: "s3://b"}, map[string]string{"AWS_ACCESS_KEY_ID": "id"}},
		{Config{URL: "s3://b", SecretKey: "s"}, nil},
		{Config{URL: "s3://b", Profile: "there is none of this name"}, keys},
	} {
		_, err := c.config.resolve(t.Context(), func(name string) string { return c.env[name] })
		if !fault.Is(err, fault.Invalid) || fault.As(err).Hint == "" {
			t.Errorf("%+v: %v", c.config, err)
		}
	}
}

// A profile of the shared credentials file.
func TestProfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(path, []byte("[default]\naws_access_key_id=d\naws_secret_access_key=ds\n[other]\naws_access_key_id=o\naws_secret_access_key=os\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", path)
	t.Setenv("AWS_CONFIG_FILE", path)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_PROFILE", "")
	for profile, want := range map[string]string{"": "d", "other": "o"} {
		c, err := Config{URL: "s3://b", Profile: profile}.Resolve(t.Context())
		if err != nil || c.AccessKey != want || c.SecretKey != want+"s" {
			t.Errorf("profile %q: %#v, %v", profile, c, err)
		}
	}
	t.Setenv("AWS_PROFILE", "other")
	if c, err := (Config{URL: "s3://b"}).Resolve(t.Context()); err != nil || c.AccessKey != "o" {
		t.Errorf("%#v, %v", c, err)
	}
}
