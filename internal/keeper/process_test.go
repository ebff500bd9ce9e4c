// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

// The test binary plays the other processes too, by the value of roleEnv.
const (
	roleEnv   = "KEEPER_TEST_ROLE"
	socketEnv = "KEEPER_TEST_SOCKET"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "keeper":
		if err := Main(os.Getenv(socketEnv), slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "server":
		if err := actServer(os.Getenv(socketEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// actServer starts a keeper, puts the socket that is descriptor 3 and then puts
// and gets without end, to be killed somewhere in the middle.
func actServer(path string) error {
	ctx := context.Background()
	c, err := Ensure(ctx, path, func(context.Context) error { return startKeeper(path) })
	if err != nil {
		return err
	}
	socket := os.NewFile(3, "socket")
	if err := c.Put(ctx, "held", socket); err != nil {
		return err
	}
	fmt.Println("put")
	for {
		if err := c.Put(ctx, "busy", socket, socket, socket); err != nil {
			return err
		}
		files, err := c.Get(ctx, "busy")
		if err != nil {
			return err
		}
		for _, f := range files {
			f.Close()
		}
	}
}

func startKeeper(path string) error {
	return role("keeper", path).Start()
}

func role(name, path string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+name, socketEnv+"="+path)
	return cmd
}

// TestKeeperOutlivesKilledServer is the whole purpose: a server is killed
// without warning, its keeper lives on and the next server gets the socket.
func TestKeeperOutlivesKilledServer(t *testing.T) {
	t.Parallel()
	// The orphaned keeper becomes a child of the test, which can wait for it.
	must(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	path := filepath.Join(t.TempDir(), "k.sock")
	host, guest := socketPair(t)
	server := role("server", path)
	server.ExtraFiles = []*os.File{host}
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	must(t, err)
	must(t, server.Start())
	if line, err := io.ReadAll(io.LimitReader(out, 4)); err != nil || string(line) != "put\n" {
		_ = server.Process.Kill()
		t.Fatalf("server said %q, %v", line, err)
	}
	must(t, host.Close())
	keeper := keeperPID(t, path)
	running := true
	t.Cleanup(func() {
		if running { // the test has failed before it could stop the keeper
			_ = unix.Kill(keeper, unix.SIGKILL)
		}
	})

	// First what a service manager would do to the group, then the worst.
	must(t, unix.Kill(-server.Process.Pid, unix.SIGKILL))
	_ = server.Wait()

	_, err = guest.WriteString("to whom it may concern")
	must(t, err)
	c, err := Ensure(t.Context(), path, func(context.Context) error { return errors.New("the keeper did not survive") })
	must(t, err)
	t.Cleanup(c.Close)
	held := takeOne(t, c, "held")
	expectRead(t, held, "to whom it may concern")
	must(t, held.Close())

	expectKind(t, c.Stop(t.Context()), fault.Conflict)
	must(t, c.Drop(t.Context(), "held"))
	must(t, c.Drop(t.Context(), "busy"))
	must(t, c.Stop(t.Context()))
	ended := make(chan error, 1)
	go func() {
		_, err := unix.Wait4(keeper, nil, 0, nil)
		ended <- err
	}()
	select {
	case err := <-ended:
		must(t, err)
		running = false
	case <-time.After(patience):
		t.Fatal("the keeper did not end")
	}
	expectEOF(t, guest)
}

func TestKeeperIgnoresSignals(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "k.sock")
	cmd := role("keeper", path)
	var log bytes.Buffer
	cmd.Stderr = &log
	c, err := Ensure(t.Context(), path, func(context.Context) error { return cmd.Start() })
	must(t, err)
	t.Cleanup(func() {
		c.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	pid := cmd.Process.Pid
	unprotected := "" // the score, where the keeper could not lower it
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE} {
		must(t, unix.Kill(pid, sig))
		if _, err := c.List(t.Context()); err != nil {
			t.Fatalf("after %v: %v", sig, err)
		}
	}
	score, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
	must(t, err)
	if got := strings.TrimSpace(string(score)); got != strconv.Itoa(oomScoreAdj) {
		unprotected = got
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d, %v; want %d", sid, err, pid)
	}

	// A second keeper does not take over the path of a living one.
	second, err := role("keeper", path).CombinedOutput()
	if err == nil || !strings.Contains(string(second), "another keeper serves") {
		t.Errorf("second keeper: %v, %q", err, second)
	}

	// Killed, it leaves a dead socket, which Ensure replaces.
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	// A container may forbid lowering the score; then the log must say so.
	if unprotected != "" && !strings.Contains(log.String(), "not protected when memory runs out") {
		t.Errorf("oom_score_adj %s without a warning: %s", unprotected, log.String())
	}
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("the client did not see the keeper's end")
	}
	next := role("keeper", path)
	again, err := Ensure(t.Context(), path, func(context.Context) error { return next.Start() })
	must(t, err)
	must(t, again.Stop(t.Context()))
	again.Close()
	if err := next.Wait(); err != nil {
		t.Errorf("a stopped keeper: %v", err)
	}
}

func TestListenRefusesLongPath(t *testing.T) {
	t.Parallel()
	_, _, err := listen("/" + strings.Repeat("d", maxPath))
	expectKind(t, err, fault.Invalid)
}

func TestEnsureReportsFailedStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "k.sock")
	broken := errors.New("broken")
	if _, err := Ensure(t.Context(), path, func(context.Context) error { return broken }); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Ensure(ctx, path, func(context.Context) error { return nil })
	expectKind(t, err, fault.Unavailable)
}

// TestEnsureOutlastsAnEndingKeeper dials one that lets a client in and closes the
// connection unanswered, as the kernel does for a process that is being ended.
func TestEnsureOutlastsAnEndingKeeper(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "k.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	must(t, err)
	go func() {
		for range 2 {
			if c, err := l.Accept(); err == nil {
				c.Close()
			}
		}
		l.Close() // which removes the socket
	}()
	next := role("keeper", path)
	c, err := Ensure(t.Context(), path, func(context.Context) error { return next.Start() })
	must(t, err)
	must(t, c.Stop(t.Context()))
	c.Close()
	must(t, next.Wait())
}

// keeperPID finds the process that listens at path by its credentials.
func keeperPID(t *testing.T, path string) int {
	t.Helper()
	raw, err := rawDial(t, path).SyscallConn()
	must(t, err)
	var cred *unix.Ucred
	must(t, raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}))
	must(t, err)
	return int(cred.Pid)
}
