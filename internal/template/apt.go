// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// aptSetup is how this host gets Debian packages.
type aptSetup struct {
	sources []string // files with the sources of a release; none for Debian's own mirrors
	options string   // an apt.conf: proxies and what else is about fetching
	env     []string // proxies that are set in the environment
}

// aptLimit bounds what is read from apt's tools, in bytes.
const aptLimit = 16 << 20

// hostApt finds out how the host gets packages of a release. It asks apt
// itself, so that every form of its configuration counts. A host without apt
// has no setup.
func hostApt(ctx context.Context, suite string) (aptSetup, error) {
	a := aptSetup{env: proxyEnv(os.Environ())}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return a, nil
	}
	targets, err := output(ctx, aptLimit, "apt-get", "indextargets",
		"--format", "$(SOURCESENTRY)|$(RELEASE)", "Created-By: Packages")
	if err != nil {
		return a, err
	}
	a.sources = sourcesOf(targets, suite)
	config, err := output(ctx, aptLimit, "apt-config", "dump")
	if err != nil {
		return a, err
	}
	a.options = fetchOptions(config)
	return a, nil
}

// sourcesOf gives the files whose sources are all of one release, with its
// updates, out of lines such as
// "/etc/apt/sources.list.d/debian.sources:1|bookworm-updates". Files with other
// sources are left, because their packages would come in, too.
func sourcesOf(targets, suite string) []string {
	fits := map[string]bool{}
	for line := range strings.Lines(targets) {
		entry, release, ok := strings.Cut(strings.TrimSpace(line), "|")
		colon := strings.LastIndexByte(entry, ':')
		if !ok || colon < 0 {
			continue
		}
		file := entry[:colon]
		good := slices.Contains([]string{suite, suite + "-updates", suite + "-security"}, release)
		if known, seen := fits[file]; seen {
			good = good && known
		}
		fits[file] = good
	}
	var files []string
	for file, good := range fits {
		if good {
			files = append(files, file)
		}
	}
	slices.Sort(files)
	return files
}

// fetchOptions picks, from what "apt-config dump" prints, the options that say
// how to reach a mirror and how strictly to take its dates.
func fetchOptions(config string) string {
	var b strings.Builder
	for line := range strings.Lines(config) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, prefix := range []string{
			"Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Max-ValidTime",
			"Acquire::Retries", "Acquire::ForceIPv",
		} {
			if strings.HasPrefix(key, prefix) && value != `"";` && !strings.HasSuffix(key, "::") {
				b.WriteString(key + " " + value + "\n")
				break
			}
		}
	}
	return b.String()
}

// proxyEnv picks the variables that programs take proxies from.
func proxyEnv(env []string) []string {
	var out []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch strings.ToLower(name) {
		case "http_proxy", "https_proxy", "no_proxy":
			out = append(out, e)
		}
	}
	return out
}
