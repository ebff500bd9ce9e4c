// SPDX-License-Identifier: Apache-2.0

package pager_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/client"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/engine/enginetest"
	"github.com/opencomputer/oc/internal/pager"
)

// dyingEnv makes the test binary a helper that captures an engine and is killed
// at one of its calls.
const dyingEnv = "OC_TEST_DYING_HELPER"

// dying is what it is told.
type dying struct {
	Socket string // the engine's
	At     int    // how many calls it serves before the one it dies at
}

func TestMain(m *testing.M) {
	told := os.Getenv(dyingEnv)
	if told == "" {
		log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}}) // it tells of each broken connection
		os.Exit(m.Run())
	}
	var d dying
	err := json.Unmarshal([]byte(told), &d)
	if err == nil {
		err = d.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the helper that was to be killed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run captures as an engine helper does, until the engine makes the call to die
// at; if it makes fewer, to the end.
func (d dying) run() error {
	var files [3]*os.File
	for i := range files {
		fd, err := unix.MemfdCreate("arena", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), "arena")
		if err := files[i].Truncate(1 << 30); err != nil {
			return err
		}
	}
	arena, err := pager.NewArena(files[0], files[1], files[2])
	if err != nil {
		return err
	}
	calls, theirs, err := arena.Offer()
	if err != nil {
		return err
	}
	c, err := client.ConnectTo(d.Socket)
	if err != nil {
		return err
	}
	captured := make(chan error, 1)
	go func() {
		captured <- c.Call(boot.ContMgrCheckpoint, &control.SaveOpts{
			Metadata: statefile.CompressionLevelNone.ToMetadata(), Resume: true,
			UseCheckpointGofer: true, HavePagesFile: true,
			FilePayload: urpc.FilePayload{Files: []*os.File{theirs}},
		}, nil)
		_ = theirs.Close() // the end of the calls, if the engine has closed its own
	}()
	for range d.At {
		if err := calls.Next(); err != nil {
			return <-captured // there are no more calls
		}
	}
	if err := calls.Await(); err != nil {
		return err
	}
	select {
	case err := <-captured:
		return err
	default:
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}
}

// A helper that is killed at any of the engine's calls costs it the capture, and
// nothing else; also where it opens the files, which it could not bear to fail.
func TestHelperKilledAtEachCall(t *testing.T) {
	t.Parallel()
	host, err := enginetest.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // when the guest has ended
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	g := host.Start(t, enginetest.Shape())
	g.Begin(t, "i=0; while :; do i=$((i+1)); echo $i >/run/n~; mv /run/n~ /run/n; sleep 0.01; done")
	enginetest.Eventually(t, "it counts", func() bool { _, code := g.Run(t, "test -f /run/n"); return code == 0 })
	passes := 1
	if os.Getenv("OC_TEST_LONG") != "" {
		passes = 10
	}
	const opening = 5 // the calls that open the files; more follow
	before, killed := 0, 0
	for range passes {
		at := 0
		for ; killedAt(t, g.Process, at); at++ {
			if !host.Alive(g.Process) {
				t.Fatalf("the engine died of a helper that was killed at call %d", at)
			}
			least := before
			enginetest.Eventually(t, "it counts on", func() bool {
				n, err := strconv.Atoi(g.Must(t, "cat /run/n"))
				if err != nil || n < least {
					t.Fatalf("killed at call %d: counts from %d to %d (%v)", at, least, n, err)
				}
				before = n
				return n > least
			})
			killed++
		}
		if at <= opening {
			t.Errorf("only %d calls were died at", at)
		}
	}
	t.Logf("%d helpers were killed", killed)
	c, err := host.Capture(t.Context(), g.Process, engine.CaptureOptions{Budget: 4 << 30})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// killedAt has a helper die; false: it captured instead.
func killedAt(t *testing.T, p engine.Process, call int) bool {
	t.Helper()
	told, err := json.Marshal(dying{Socket: filepath.Join(p.Dir, "runsc-"+p.Generation+".sock"), At: call})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), dyingEnv+"="+string(told))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("call %d: %v: %s", call, err, out)
	}
	return false
}
