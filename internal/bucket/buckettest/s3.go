// SPDX-License-Identifier: Apache-2.0

package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/bucket/s3"
	"golang.org/x/sys/unix"
)

// S3 is a real S3 server on the loopback interface: versitygw on a directory.
type S3 struct {
	binary  string
	data    string
	address string
	command *exec.Cmd
	ended   chan struct{} // closed when command is
	output  bytes.Buffer  // of command, to be read when it has ended
}

const (
	s3Access = "test"
	s3Secret = "test-secret"
	s3Bucket = "objects"
	// s3Wait bounds the start of the server, which takes a fraction of a second.
	s3Wait = time.Minute
)

// StartS3 starts a server for a test, and ends it.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	s, err := NewS3(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// NewS3 builds the server if need be (the first time: two minutes) and starts
// it on a directory, with an empty bucket in it. Whoever calls it calls Stop.
func NewS3(ctx context.Context, data string) (*S3, error) {
	binary, err := buildS3(ctx)
	if err != nil {
		return nil, err
	}
	s := &S3{binary: binary, data: data}
	if err := os.MkdirAll(filepath.Join(data, s3Bucket), 0o700); err != nil { // each directory is a bucket
		return nil, err
	}
	// The server cannot choose a port and tell it, so another may be quicker.
	for range 20 {
		if s.address, err = freeAddress(ctx); err != nil {
			return nil, err
		}
		if err = s.Start(ctx); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// Config is what s3.Open needs.
func (s *S3) Config() s3.Config {
	return s3.Config{URL: "s3://" + s3Bucket, Endpoint: s.Endpoint(), Region: "us-east-1", AccessKey: s3Access, SecretKey: s3Secret}
}

// Endpoint is the server's http:// URL. It stays the same when the server stops
// and starts.
func (s *S3) Endpoint() string { return "http://" + s.address }

// Start starts the server, once more after Stop, and returns when it answers.
func (s *S3) Start(ctx context.Context) error {
	s.output.Reset()
	c := exec.Command(s.binary, "--port", s.address, "--access", s3Access, "--secret", s3Secret, "--quiet", "posix", s.data)
	c.Dir = s.data
	c.Env = []string{"HOME=" + s.data, "PATH=" + os.Getenv("PATH")}
	c.Stdout, c.Stderr = &s.output, &s.output
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return err
	}
	s.command, s.ended = c, make(chan struct{})
	go func() {
		defer close(s.ended)
		_ = c.Wait() // that it has ended is all
	}()
	ctx, cancel := context.WithTimeout(ctx, s3Wait)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint(), nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			return resp.Body.Close()
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return fmt.Errorf("buckettest: versitygw ended: %s", &s.output)
		case <-ctx.Done():
			s.Stop()
			return fmt.Errorf("buckettest: versitygw does not answer: %w\n%s", ctx.Err(), &s.output)
		}
	}
}

// Stop kills the server; its data stay. It may be called again.
func (s *S3) Stop() {
	_ = s.command.Process.Kill()
	<-s.ended
}

// buildS3 gives the path of the server, in the build cache.
func buildS3(ctx context.Context) (string, error) {
	dir, err := s3Module()
	if err != nil {
		return "", err
	}
	// One build, not one for each test binary: go runs them side by side. (The
	// lock of go.mod is go's own.)
	lock, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return "", err
	}
	c := exec.CommandContext(ctx, "go", "tool", "-n", "versitygw")
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("buckettest: building versitygw: %w\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}

// s3Module finds tools/versitygw above the working directory.
func s3Module() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		found := filepath.Join(dir, "tools", "versitygw")
		if _, err := os.Stat(filepath.Join(found, "go.mod")); err == nil {
			return found, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("buckettest: no tools/versitygw above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// freeAddress gives a loopback address that nobody listens at, of a port that
// the system gives to no outgoing connection.
func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	for {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.N(12000))
		l, err := lc.Listen(ctx, "tcp", address)
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			return "", err
		}
		return address, l.Close()
	}
}
