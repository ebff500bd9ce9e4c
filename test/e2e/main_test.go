// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/test/harness"
)

// shared is the server of the tests that need none of their own. It loads
// checkpoints slowly, so that what the tests do to restored and spawned
// sandboxes, they do while these still load.
var shared *harness.Server

// slowLoad is the shared server's load rate in MB/s.
const slowLoad = 20

// long tells whether the counts are the large ones.
var long = os.Getenv("OC_TEST_LONG") != ""

// upTime bounds how long starting a server and making its template may take.
const upTime = 3 * time.Minute

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), upTime)
	defer cancel()
	var err error
	if shared, err = start(ctx, "", harness.Settings{"load-rate": slowLoad}); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: starting the shared server:", err)
		return 1
	}
	defer func() {
		if code != 0 {
			fmt.Fprintf(os.Stderr, "from the shared server's log:\n%s\n", troubles(shared))
		}
		if err := shared.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL: the shared server:", err)
			code = 1
		}
	}()
	return m.Run()
}

// start brings up a server with the template that the tests use.
func start(ctx context.Context, parent string, settings harness.Settings, env ...string) (*harness.Server, error) {
	s, err := harness.New(parent, settings, env...)
	if err != nil {
		return nil, err
	}
	if err = s.Up(ctx); err == nil {
		var out harness.Output
		if out, err = s.Run(ctx, nil, "template", "build", "small"); err == nil && out.Code != 0 {
			err = fmt.Errorf("%s", out)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// ownServer brings up a server for one test, in a directory below parent ("" =
// the default), and closes it at the end, when nothing may be left of it.
func ownServer(t *testing.T, parent string, settings harness.Settings, env ...string) *harness.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), upTime)
	defer cancel()
	s, err := start(ctx, parent, settings, env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("from the server's log:\n%s", troubles(s))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// troubles gives the last lines of a server's log that are not about requests
// that went well.
func troubles(s *harness.Server) string {
	var lines []string
	for line := range strings.Lines(s.Log()) {
		if !strings.Contains(line, "level=INFO msg=request") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-30):], "")
}

// count is how often something is done: n times, or m in the long mode.
func count(n, m int) int {
	if long {
		return m
	}
	return n
}
