// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// options are the command line.
type options struct {
	binary    string
	dir       string // the temporary directory is made in it
	runs      int
	workloads []workload
	only      []string
}

// What is measured without flags, and with -quick.
const (
	allSizes, allRuns     = "idle,64,256,1024,30000f", 9
	quickSizes, quickRuns = "idle,64", 3
)

func parseOptions(args []string, complaints io.Writer) (options, error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(complaints)
	var names []string
	for _, m := range measures() {
		names = append(names, m.name)
	}
	binary := os.Getenv("OC_BIN")
	if binary == "" {
		binary = "bin/oc"
	}
	var o options
	f.StringVar(&o.binary, "oc", binary, "the static oc `binary` (env OC_BIN)")
	f.StringVar(&o.dir, "dir", "/var/tmp", "where to make the temporary `directory`; on the kind of disk that you want to know about")
	runs := f.Int("runs", 0, fmt.Sprintf("repetitions of each measure (default %d, with -quick %d)", allRuns, quickRuns))
	sizes := f.String("sizes", "", fmt.Sprintf("workloads, a `list`: idle, MiB of random memory, or with an f behind it a number of files (default %s, with -quick %s)", allSizes, quickSizes))
	only := f.String("only", "", "measures to take, a `list` of "+strings.Join(names, ",")+" (default all)")
	quick := f.Bool("quick", false, "about two minutes: fewer workloads and runs, and not "+dedup)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	defaultSizes, defaultRuns := allSizes, allRuns
	if *quick {
		defaultSizes, defaultRuns = quickSizes, quickRuns
	}
	if *sizes == "" {
		*sizes = defaultSizes
	}
	if o.runs = *runs; o.runs < 1 {
		o.runs = defaultRuns
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	} else if *quick {
		o.only = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == dedup })
	}
	for _, name := range o.only {
		if !slices.Contains(names, name) {
			return o, fmt.Errorf("-only: no measure %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	var err error
	if o.workloads, err = parseWorkloads(*sizes); err != nil {
		return o, err
	}
	o.binary, err = filepath.Abs(o.binary)
	return o, err
}

// wants tells whether a measure is to be taken.
func (o options) wants(measure string) bool {
	return len(o.only) == 0 || slices.Contains(o.only, measure)
}

// cpus is how many our sandboxes have; the bare engine's have all there are.
func cpus() int { return runtime.NumCPU() }
