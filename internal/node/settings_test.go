// SPDX-License-Identifier: Apache-2.0

package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/opencomputer/oc/internal/fault"
)

// complete parses flags and completes them from an environment and a file.
func complete(t *testing.T, args []string, env map[string]string, file string) (Settings, error) {
	t.Helper()
	var s Settings
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	s.Bind(f)
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Parse(append([]string{"--config", path}, args...)); err != nil {
		t.Fatal(err)
	}
	err := s.Complete(f, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	return s, err
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		args   []string
		env    map[string]string
		file   string
		listen string
		budget int
	}{
		{"default", nil, nil, `{}`, DefaultListen, 0},
		{"file", nil, nil, `{"listen": "file:1", "capture-budget": 1000000}`, "file:1", 1000000},
		{"environment over file", nil, map[string]string{"OC_LISTEN": "env:1", "OC_CAPTURE_BUDGET": "2"}, `{"listen": "file:1", "capture-budget": 1}`, "env:1", 2},
		{"flag over all", []string{"--listen", "flag:1", "--capture-budget=3"}, map[string]string{"OC_LISTEN": "env:1", "OC_CAPTURE_BUDGET": "2"}, `{"listen": "file:1"}`, "flag:1", 3},
		{"a flag that says the default", []string{"--listen", DefaultListen}, map[string]string{"OC_LISTEN": "env:1"}, `{}`, DefaultListen, 0},
		{"an empty variable is unset", nil, map[string]string{"OC_LISTEN": ""}, `{"listen": "file:1"}`, "file:1", 0},
		{"a number as text", nil, nil, `{"capture-budget": "7"}`, DefaultListen, 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := complete(t, tt.args, tt.env, tt.file)
			if err != nil || s.Listen != tt.listen || s.CaptureBudgetMB != tt.budget {
				t.Errorf("listen %q, budget %d, %v; want %q, %d", s.Listen, s.CaptureBudgetMB, err, tt.listen, tt.budget)
			}
		})
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string
		env  map[string]string
		file string
		says string
	}{
		{"unknown key", nil, nil, `{"lisen": "x"}`, `unknown setting "lisen"`},
		{"config in the file", nil, nil, `{"config": "x"}`, `unknown setting "config"`},
		{"not JSON", nil, nil, `listen: x`, "not a JSON object"},
		{"a list", nil, nil, `[]`, "not a JSON object"},
		{"two objects", nil, nil, `{} {}`, "not a JSON object"},
		{"an object as a value", nil, nil, `{"listen": {"port": 1}}`, "listen in"},
		{"null as a value", nil, nil, `{"listen": null}`, "listen in"},
		{"text for a number", nil, nil, `{"load-rate": "fast"}`, "load-rate in"},
		{"a fraction", nil, nil, `{"load-rate": 1.5}`, "load-rate in"},
		{"bad variable", nil, map[string]string{"OC_LOAD_RATE": "fast"}, `{}`, "OC_LOAD_RATE"},
		{"negative", []string{"--pool=-1"}, nil, `{}`, "pool is -1"},
		{"missing file", nil, map[string]string{}, "", "not a JSON object"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := complete(t, tt.args, tt.env, tt.file); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
	var s Settings
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	s.Bind(f)
	missing := filepath.Join(t.TempDir(), "none")
	if err := s.Complete(f, func(k string) (string, bool) { return missing, k == "OC_CONFIG" }); !fault.Is(err, fault.Invalid) {
		t.Errorf("a file that was named and is missing: %v", err)
	}
}

// A command that has only some of the flags takes a server's file.
func TestFewerFlags(t *testing.T) {
	t.Parallel()
	var s Settings
	f := pflag.NewFlagSet("down", pflag.ContinueOnError)
	s.BindDataDir(f)
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(`{"listen": "x:1", "data-dir": "rel"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Parse([]string{"--config", path}); err != nil {
		t.Fatal(err)
	}
	if err := s.Complete(f, func(string) (string, bool) { return "", false }); err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil || s.DataDir != filepath.Join(wd, "rel") {
		t.Errorf("data directory %s, %v", s.DataDir, err)
	}
}

// Each setting can be had in all three ways, and says so.
func TestHelpNamesTheVariables(t *testing.T) {
	t.Parallel()
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	new(Settings).Bind(f)
	f.VisitAll(func(fl *pflag.Flag) {
		env := "OC_" + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		if !strings.Contains(fl.Usage, "(env "+env+")") {
			t.Errorf("--%s does not name %s", fl.Name, env)
		}
	})
}

// Run-time paths are short, because of unix sockets, and differ by data directory.
func TestPlaces(t *testing.T) {
	t.Parallel()
	a, b := placesOf("/a"), placesOf(strings.Repeat("/long", 100))
	if a.run == b.run || a.cgroup == b.cgroup || len(b.keeperSocket()) > 60 {
		t.Errorf("%+v, %+v", a, b)
	}
}
