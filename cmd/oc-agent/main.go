// SPDX-License-Identifier: Apache-2.0

// Command oc-agent is PID 1 of every sandbox: it owns the sandbox's processes
// and serves sessions, terminals and files over the socket that is its standard
// input. All it does is in internal/agent; it is given only what cannot be
// asked for over that socket:
//
//	OC_PIDS_MAX  most processes and threads of all sessions together; 0: no limit
package main

import (
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/opencomputer/oc/internal/agent"
)

// build is stamped by the build.
var build = "dev"

func main() {
	// Every page the agent dirties is in every checkpoint, and its garbage and
	// threads are dirty pages.
	debug.SetGCPercent(50)
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	pids, err := strconv.Atoi(os.Getenv("OC_PIDS_MAX"))
	if err != nil && os.Getenv("OC_PIDS_MAX") != "" {
		log.Warn("OC_PIDS_MAX is not a number: processes are not limited", "value", os.Getenv("OC_PIDS_MAX"))
	}
	agent.New(agent.Config{
		Channel: 0,
		Root:    "/",
		PID1:    os.Getpid() == 1,
		PidsMax: pids,
		Build:   build,
		Log:     log,
	}).Run()
}
