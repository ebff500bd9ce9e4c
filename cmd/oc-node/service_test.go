// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestUnitKeepsSandboxesWhenTheServerStops(t *testing.T) {
	t.Parallel()
	text := unit("/opt/oc dir/oc", `/srv/100% "data"`)
	for _, line := range []string{
		`ExecStart="/opt/oc dir/oc" serve --data-dir "/srv/100%% \"data\""`,
		"KillMode=process", "Delegate=yes", "OOMPolicy=continue", "LimitNOFILE=1048576", "Restart=always",
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("the unit lacks the line %q:\n%s", line, text)
		}
	}
}
