// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

func TestComplete(t *testing.T) {
	t.Parallel()
	l := Limits{
		DefaultCPUs: 1, MaxCPUs: 4, DefaultMemoryMB: 1024, MinMemoryMB: 128, MaxMemoryMB: 8192,
		DefaultDiskMB: 20480, MinDiskMB: 64, MaxDiskMB: 262144,
	}
	many := map[string]string{}
	for i := range maxEntries + 1 {
		many["K"+strings.Repeat("x", i)] = ""
	}
	for what, sb := range map[string]meta.Sandbox{
		"cpuCount":             {CPUs: 5},
		"cpuCount is -1":       {CPUs: -1},
		"memoryMB":             {MemoryMB: 127},
		"memoryMB is 8193":     {MemoryMB: 8193},
		"diskMB":               {DiskMB: 1},
		"timeout":              {TimeoutSec: -1},
		"timeout is 99999999":  {TimeoutSec: 99999999},
		"name":                 {Name: strings.Repeat("n", maxName+1)},
		"printable":            {Name: "a\nb"},
		"at most 100":          {Name: "a\x7fb"},
		"printable characters": {Name: "a\u0085b"},
		"envs has":             {Envs: many},
		"longer than":          {Metadata: map[string]string{"k": strings.Repeat("v", maxEntry)}},
		"not a valid":          {Envs: map[string]string{"1A": "x"}},
		`"A=B"`:                {Envs: map[string]string{"A=B": "x"}},
		`"NUL"`:                {Envs: map[string]string{"NUL": "a\x00b"}},
	} {
		if err := l.complete(&sb); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	sb := meta.Sandbox{Envs: map[string]string{"A_1": "x=\ny"}, Metadata: map[string]string{"any key": "v"}, Name: strings.Repeat("ï", maxName)}
	if err := l.complete(&sb); err != nil || sb.CPUs != 1 || sb.MemoryMB != 1024 || sb.DiskMB != 20480 {
		t.Errorf("defaults: %+v, %v", sb, err)
	}
}
