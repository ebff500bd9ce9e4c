// SPDX-License-Identifier: Apache-2.0

//go:build long

package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
)

// baseTime bounds how long making the default template may take: it comes from
// Debian's mirrors.
const baseTime = 15 * time.Minute

// TestBaseTemplateIsComplete builds the default template and looks, in a sandbox of
// it, for all that is promised of it.
func TestBaseTemplateIsComplete(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	ctx, cancel := context.WithTimeout(t.Context(), baseTime)
	defer cancel()
	if out, err := s.Run(ctx, nil, "template", "build", "base"); err != nil || out.Code != 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	sb := asJSON[client.Sandbox](t, s, "create", "--timeout", "0")
	if sb.TemplateID != "base" {
		t.Errorf("the template is %q", sb.TemplateID)
	}
	b := adopt(t, s, sb.ID)
	for pkg, proof := range map[string]string{
		"bash":            "bash --version",
		"coreutils":       "sha256sum --version",
		"ca-certificates": "test -s /etc/ssl/certs/ca-certificates.crt && echo there",
		"curl":            "curl --version",
		"git":             "git init -q g && git -C g status",
		"jq":              "echo '{}' | jq .",
		"procps":          "ps aux",
		"sudo":            "sudo --version",
		"python3":         "python3 -c 'import ssl, sqlite3; print(1)'",
		"nodejs":          "node -e 'console.log(1)'",
	} {
		if out := b.exec("bash", "-c", proof); out.Code != 0 || out.Stdout == "" {
			t.Errorf("%s: %s", pkg, out)
		}
		if out := b.exec("dpkg-query", "-W", "-f", "${db:Status-Status}", pkg); out.Stdout != "installed" {
			t.Errorf("the package %s: %s", pkg, out)
		}
	}
	for script, want := range map[string]string{
		"id -un; id -u; pwd":            "sandbox 1000 /home/sandbox",
		"readlink -f /workspace":        "/home/sandbox",
		"echo 1 >/workspace/f; cat ~/f": "1",
		"sudo -n true && echo ok":       "ok",
		"sudo -n id -u":                 "0",
	} {
		if got := strings.Join(strings.Fields(b.sh(script)), " "); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// It can be checkpointed as it is.
	b.count()
	clone := spawn(t, s, b.checkpoint("base"))
	clone.countOn(5)
}
