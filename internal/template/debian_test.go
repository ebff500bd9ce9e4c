// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

func TestSourcesOf(t *testing.T) {
	t.Parallel()
	targets := `/etc/apt/sources.list.d/debian.sources:1|bookworm
/etc/apt/sources.list.d/debian.sources:1|bookworm-updates
/etc/apt/sources.list.d/debian.sources:2|bookworm-security
/etc/apt/sources.list:7|bookworm
/etc/apt/sources.list:9|nodistro
/etc/apt/sources.list.d/next.list:1|trixie
/etc/apt/sources.list.d/also.list:1|bookworm
no colon|bookworm
nothing
`
	for suite, want := range map[string][]string{
		"bookworm": {"/etc/apt/sources.list.d/also.list", "/etc/apt/sources.list.d/debian.sources"},
		"trixie":   {"/etc/apt/sources.list.d/next.list"},
		"sid":      nil,
	} {
		if got := sourcesOf(targets, suite); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, want %q", suite, got, want)
		}
	}
}

func TestFetchOptions(t *testing.T) {
	t.Parallel()
	got := fetchOptions(`APT "";
Acquire "";
Acquire::http::Proxy "http://user:secret@proxy:3128";
Acquire::http::Proxy::Example "";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "none";
DPkg::Post-Invoke:: "rm -rf /";
`)
	want := `Acquire::http::Proxy "http://user:secret@proxy:3128";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::Check-Valid-Until "false";
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWithoutPasswords(t *testing.T) {
	t.Parallel()
	got := withoutPasswords("deb https://u:p@host/debian a main\nURIs: http://host/x@y http://t@h/\n")
	want := "deb https://host/debian a main\nURIs: http://host/x@y http://h/\n"
	if got != want {
		t.Errorf("got %q", got)
	}
}

func TestSpecChecked(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	for _, s := range []Spec{
		{Suite: "--help"}, {Suite: "a/b"}, {Suite: ""}, {Suite: "bookworm", Packages: []string{"a,b"}},
		{Suite: "bookworm", Packages: []string{"?essential"}}, {Suite: "bookworm", Packages: make([]string, 2000)},
	} {
		_, err := b.BuildDebian(t.Context(), s, nil)
		wantKind(t, err, fault.Invalid)
	}
}

func TestToolMissing(t *testing.T) {
	t.Parallel()
	err := tool{name: "no-such-tool", pkg: "some-package"}.run(t.Context(), nil)
	wantKind(t, err, fault.Unavailable)
	if f := fault.As(err); f.Hint != "apt-get install some-package" {
		t.Errorf("hint %q", f.Hint)
	}
}

func TestToolFailureSaysWhy(t *testing.T) {
	t.Parallel()
	err := tool{name: "sh", args: []string{"-c", "echo one; echo 'E: two' >&2; exit 3"}}.run(t.Context(), nil)
	wantKind(t, err, fault.Unavailable)
	if f := fault.As(err); !strings.Contains(f.Hint, "E: two") {
		t.Errorf("hint %q", f.Hint)
	}
	err = tool{name: "sh", args: []string{"-c", "echo 'x: No space left on device' >&2; exit 1"}}.run(t.Context(), nil)
	if f := fault.As(err); f.Kind != fault.Unavailable || !strings.Contains(f.Message, "no space") {
		t.Errorf("got %v", err)
	}
}

func TestToolLinesAreBounded(t *testing.T) {
	t.Parallel()
	longest, count := 0, 0
	err := tool{name: "sh", args: []string{"-c", `head -c 100000 /dev/zero | tr '\0' x; echo; seq 1000; printf last`}}.run(t.Context(), func(l string) {
		longest = max(longest, len(l))
		count++
	})
	if err != nil || longest != maxLine || count != 1002 {
		t.Errorf("longest %d, lines %d, %v", longest, count, err)
	}
}

// A cancelled tool takes with it what it has started, also what left its
// process group, and what it has mounted.
func TestToolDiesWhole(t *testing.T) {
	t.Parallel()
	newBuilder(t) // for the check that this is root
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The marker is in the command lines, so that the processes can be found
	// from outside of their namespace.
	marker := filepath.Join(dir, "marker")
	script := "mount -t tmpfs none " + dir + " && setsid sleep 1000 & setsid sh -c 'while :; do sleep 1; done; : " + marker + "' & " +
		"sleep 0.1; grep -q " + dir + " /proc/self/mounts && echo ready; wait"
	err := tool{name: "sh", args: []string{"-c", script}, alone: true}.run(ctx, func(line string) {
		if line == "ready" {
			if !running(t, marker) {
				t.Error("the test's process is not found")
			}
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for running(t, marker) {
		if time.Now().After(deadline) {
			t.Fatal("processes of a cancelled tool live on")
		}
		<-time.After(10 * time.Millisecond)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left: %v", err)
	}
}

// running tells whether a process has the marker in its command line.
func running(t *testing.T, marker string) bool {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if data, err := os.ReadFile(p); err == nil && strings.Contains(string(data), marker) {
			return true
		}
	}
	return false
}

// An aborted build leaves nothing behind: newBuilder's cleanup looks.
func TestBuildDebianCancelled(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Fatal("apt-get install mmdebstrap: ", err)
	}
	b := newBuilder(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := b.BuildDebian(ctx, Base(), func(string) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
