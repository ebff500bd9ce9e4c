// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencomputer/oc/test/harness"
)

// running gives a server's processes that were started with each of the words.
func running(s *harness.Server, words ...string) []int {
	var pids []int
	for _, p := range s.Processes() {
		if !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(p.Args, w) }) {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// engines gives the engine processes, of sandboxes and of the pool.
func engines(s *harness.Server) []int { return running(s, "runsc-sandbox") }

// crash kills the server.
func crash(t *testing.T, s *harness.Server) {
	t.Helper()
	crashRoles(t, s, "serve")
}

// crashRoles kills the processes of a server of which there is one each, once they
// are there: the one that replaces a dead one takes its time.
func crashRoles(t *testing.T, s *harness.Server, roles ...string) {
	t.Helper()
	var pids []int
	for _, role := range roles {
		var of []int
		await(t, "one process is "+role, func() bool { of = running(s, role); return len(of) == 1 })
		pids = append(pids, of...)
	}
	for _, pid := range pids {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	await(t, "they are gone", func() bool {
		return !slices.ContainsFunc(s.Processes(), func(p harness.Process) bool { return slices.Contains(pids, p.PID) })
	})
}

// keptBuild is the directory in which a server keeps its copy of an oc.
func keptBuild(t *testing.T, s *harness.Server, binary string) string {
	t.Helper()
	f, err := os.Open(binary)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(t, err)
	return filepath.Join(s.Data, "engines", hex.EncodeToString(h.Sum(nil)))
}

// servingBuild is the directory of the kept build that a server itself runs from,
// which was started by an oc with all inside.
func servingBuild(t *testing.T, s *harness.Server) string {
	t.Helper()
	pids := running(s, "serve")
	if len(pids) != 1 {
		t.Fatalf("%d servers run", len(pids))
	}
	exe, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pids[0]), "exe"))
	must(t, err)
	build := filepath.Dir(exe)
	if filepath.Dir(build) != filepath.Join(s.Data, "engines") {
		t.Errorf("the server runs from %s, not from a kept build", exe)
	}
	return build
}

// enginesOf counts the engine processes that run from a kept build.
func enginesOf(s *harness.Server, build string) int {
	n := 0
	for _, pid := range engines(s) {
		exe, _ := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe")) // error: it has ended
		if strings.HasPrefix(exe, build+"/") {
			n++
		}
	}
	return n
}

// openFiles counts a process's descriptors.
func openFiles(t *testing.T, pid int) int {
	t.Helper()
	es, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	must(t, err)
	return len(es)
}
