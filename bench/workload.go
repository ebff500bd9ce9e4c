// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// workload is what a sandbox holds while it is measured.
type workload struct {
	name  string
	mib   int // of random memory
	files int // of 300 bytes in the writable layer
}

// filesDir is where a workload's files are, on the root file system.
const filesDir = "/bench-files"

// idle is the workload of the measures that need no other.
var idle = workload{name: "idle"}

// small is the workload of the measure of many spawns.
var small = workload{name: "64 MiB", mib: 64}

// medium and large are the workloads of what is promised of checkpoints.
var (
	medium = workload{name: "256 MiB", mib: 256}
	large  = workload{name: "1024 MiB", mib: 1024}
)

// parseWorkloads understands a list such as "idle,64,1024,30000f": mebibytes
// of random memory, or a number of files.
func parseWorkloads(list string) ([]workload, error) {
	var out []workload
	for _, word := range strings.Split(list, ",") {
		if word == "idle" || word == "0" {
			out = append(out, idle)
			continue
		}
		number, files := strings.CutSuffix(word, "f")
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-sizes: %q is not idle, a number of MiB or, with an f behind it, of files", word)
		}
		if files {
			out = append(out, workload{name: fmt.Sprintf("%d files", n), files: n})
		} else {
			out = append(out, workload{name: fmt.Sprintf("%d MiB", n), mib: n})
		}
	}
	return out, nil
}

// bytes is about what a sandbox of the workload takes in memory, the engine
// included.
func (w workload) bytes() int64 {
	const engine, perFile = 64 << 20, 20 << 10
	return engine + int64(w.mib)<<20 + int64(w.files)*perFile
}

// newBox makes a sandbox that holds the workload.
func newBox(ctx context.Context, s subject, w workload) (box, error) {
	b, err := s.Create(ctx)
	if err != nil {
		return "", err
	}
	if err := s.Serve(ctx, b); err != nil {
		return b, err
	}
	var requests [][]string
	if w.mib > 0 {
		requests = append(requests, []string{"fill", strconv.Itoa(w.mib)})
	}
	if w.files > 0 {
		requests = append(requests, []string{"files", filesDir, strconv.Itoa(w.files)})
	}
	requests = append(requests, []string{"sum"}) // it serves, and every page is there
	for _, r := range requests {
		if _, err := s.Ask(ctx, b, r...); err != nil {
			return b, err
		}
	}
	return b, nil
}
