// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/cli"
)

func TestOwns(t *testing.T) {
	t.Parallel()
	m := cli.New()
	for args, want := range map[string]bool{
		"ls":                            true,
		"--json ls":                     true,
		"--api-key serve exec sb-1 ls":  true,
		"--sessions-api-url serve ls":   true,
		"exec sb-1 -- oc serve":         true,
		"exec --help":                   true,
		"cp spawn cp-1 -n x":            true, // wrong, but it is said by the command
		"checkpoint":                    true,
		"version":                       true,
		"":                              false,
		"--help":                        false,
		"help exec":                     false,
		"serve --listen 127.0.0.1:7778": false,
		"--json status":                 false,
		"engine-helper capture":         false,
		"runsc list":                    false,
		"no-such-command":               false,
		"completion bash":               false,
		"__complete exec":               false,
	} {
		if got := m.Owns(strings.Fields(args)); got != want {
			t.Errorf("oc %s: %v, want %v", args, got, want)
		}
	}
}
