// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"os/user"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/cli/config"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/node"
)

// The first key makes the CLI work at once, unless it is set up for another
// server already.
func TestIntroduce(t *testing.T) { // not parallel: the environment says whose home it is
	const url, key = "http://127.0.0.1:9999", "osb_new"
	for _, tt := range []struct {
		name    string
		has     *config.File
		url     string
		written bool
	}{
		{"no file", nil, url, true},
		{"an empty file", &config.File{}, url, true},
		{"the same server", &config.File{APIURL: url, APIKey: "osb_old"}, url, true},
		{"another server", &config.File{APIURL: "https://elsewhere", APIKey: "osb_old"}, url, false},
		{"a key for the default server, which this is not", &config.File{APIKey: "osb_old"}, url, false},
		{"a key for the default server, which this is", &config.File{APIKey: "osb_old"}, config.DefaultAPIURL, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home := t.TempDir()
			t.Setenv("HOME", home)
			t.Setenv("SUDO_USER", "")
			if tt.has != nil {
				if err := tt.has.Save(home); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			introduce(&out, tt.url, key)
			got, err := config.Load(home)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.written && (got.APIURL != tt.url || got.APIKey != key || !strings.Contains(out.String(), config.Path(home))):
				t.Errorf("%+v; it said %s", got, out.String())
			case !tt.written && (got.APIURL != tt.has.APIURL || got.APIKey != tt.has.APIKey):
				t.Errorf("a file for another server became %+v", got)
			case !tt.written && !strings.Contains(out.String(), "oc config set api-key "+key):
				t.Errorf("it did not say how to switch: %s", out.String())
			}
		})
	}
}

func TestInvokerHome(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/elsewhere")
	t.Setenv("SUDO_USER", me.Username)
	if home, err := invokerHome(); err != nil || home != me.HomeDir {
		t.Errorf("behind sudo: %q, %v", home, err)
	}
	t.Setenv("SUDO_USER", "no-such-user-here")
	if _, err := invokerHome(); err == nil {
		t.Error("an unknown user has a home")
	}
	if err := os.Unsetenv("SUDO_USER"); err != nil {
		t.Fatal(err)
	}
	if home, err := invokerHome(); err != nil || home != "/elsewhere" {
		t.Errorf("without sudo: %q, %v", home, err)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	for _, s := range []node.Settings{{LogLevel: "loud", LogFormat: "text"}, {LogLevel: "info", LogFormat: "xml"}} {
		if _, err := logger(s, io.Discard); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	var out bytes.Buffer
	log, err := logger(node.Settings{LogLevel: "warn", LogFormat: "json"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("loud", "k", 1)
	if got := out.String(); strings.Contains(got, "quiet") || !strings.Contains(got, `"k":1`) {
		t.Errorf("logged %s", got)
	}
}
