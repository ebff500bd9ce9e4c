// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencomputer/oc/client"
)

// Bounds of the server's start and end.
const (
	serverStart = 60 * time.Second
	serverEnd   = 2 * time.Minute
	serverPoll  = 10 * time.Millisecond
)

// settings are what a server has beside the defaults.
type settings struct {
	flags []string
	env   []string // additions to the environment
}

// server is an `oc serve` of the benchmark's own, below one directory.
type server struct {
	binary string
	dir    string // data and home are below
	with   settings
	cmd    *exec.Cmd
	out    *os.File // its log
	ended  chan error
	client *client.Client
}

// startServer starts it and waits until it answers.
func startServer(ctx context.Context, binary, dir string, with settings) (*server, error) {
	s := &server{binary: binary, dir: dir, with: with, ended: make(chan error, 1)}
	if err := errors.Join(os.MkdirAll(s.data(), 0o711), os.MkdirAll(s.home(), 0o700)); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	log, err := os.Create(s.logFile())
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	s.out = log
	if err := s.start(ctx, "127.0.0.1:0", with.flags...); err != nil {
		return nil, errors.Join(err, s.out.Close())
	}
	return s, nil
}

// start starts the process.
func (s *server) start(ctx context.Context, listen string, flags ...string) (err error) {
	// Not bound to ctx: an interrupted benchmark still needs it to clean up.
	s.cmd = exec.Command(s.binary, append([]string{"serve", "--data-dir", s.data(), "--listen", listen}, flags...)...)
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = s.env(), s.out, s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is ours alone
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	go func(c *exec.Cmd) { s.ended <- c.Wait() }(s.cmd)
	if s.client, err = s.connect(ctx); err != nil {
		return errors.Join(err, s.stop())
	}
	return nil
}

// restart ends the server, not its sandboxes, and starts it with other flags.
func (s *server) restart(ctx context.Context, flags ...string) error {
	u, err := url.Parse(s.client.BaseURL())
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if err := <-s.ended; err != nil {
		return fmt.Errorf("server: %w", err)
	}
	return s.start(ctx, u.Host, flags...)
}

func (s *server) data() string    { return filepath.Join(s.dir, "data") }
func (s *server) store() string   { return filepath.Join(s.data(), "store") }
func (s *server) cache() string   { return filepath.Join(s.data(), "cache") }
func (s *server) home() string    { return filepath.Join(s.dir, "home") }
func (s *server) logFile() string { return filepath.Join(s.dir, "server.log") }

// env is the caller's without what would lead oc to another server.
func (s *server) env() []string {
	env := []string{"HOME=" + s.home()}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if name != "HOME" && name != "SUDO_USER" && !strings.HasPrefix(name, "OC_") && !strings.HasPrefix(name, "OPENCOMPUTER_") {
			env = append(env, v)
		}
	}
	return append(env, s.with.env...)
}

// connect waits for the configuration that a new server writes for its user,
// and for its health.
func (s *server) connect(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, serverStart, errors.New("the server did not answer in time"))
	defer cancel()
	for {
		c, err := s.try(ctx)
		if err == nil {
			return c, nil
		}
		select {
		case err := <-s.ended:
			s.ended <- err
			return nil, fmt.Errorf("the server ended: %w: %s", err, s.log())
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w: %s", context.Cause(ctx), err, s.log())
		case <-time.After(serverPoll):
		}
	}
}

func (s *server) try(ctx context.Context) (*client.Client, error) {
	b, err := os.ReadFile(filepath.Join(s.home(), ".oc", "config.json"))
	if err != nil {
		return nil, err
	}
	var conf struct {
		URL string `json:"api_url"`
		Key string `json:"api_key"`
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		return nil, fmt.Errorf("the configuration that the server wrote: %w", err)
	}
	c, err := client.New(conf.URL, conf.Key)
	if err != nil {
		return nil, err
	}
	if _, err := c.Health(ctx); err != nil {
		return nil, fmt.Errorf("the server is not healthy: %w", err)
	}
	return c, nil
}

// log is the end of what the server complained about, for error messages.
func (s *server) log() string {
	const most = 2000
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	var complaints strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "level=INFO") {
			complaints.WriteString(line)
		}
	}
	text := strings.TrimSpace(complaints.String())
	return text[max(0, len(text)-most):]
}

// stop ends the server with all its sandboxes.
func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), serverEnd)
	defer cancel()
	c := exec.CommandContext(ctx, s.binary, "down", "--kill", "--data-dir", s.data())
	c.Env = s.env()
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("oc down --kill: %w: %s", err, bytes.TrimSpace(out))
	}
	select {
	case e := <-s.ended:
		err = errors.Join(err, e)
	case <-ctx.Done():
		err = errors.Join(err, errors.New("the server does not end"), s.cmd.Process.Kill(), <-s.ended)
	}
	return err
}

// engine is the program that its engines run from. It is in oc, which would have
// to take it out at each start.
func (s *server) engine() (string, error) {
	found, err := filepath.Glob(filepath.Join(s.data(), "engines", "*", "oc"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("looking for the engine below %s: found %q: %w", s.data(), found, err)
	}
	return found[0], nil
}

// image is the file that sandboxes of the only template run from; there is one
// as soon as there was a sandbox.
func (s *server) image() (string, error) {
	var found []string
	err := filepath.WalkDir(s.data(), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".erofs") {
			found = append(found, path)
		}
		return err
	})
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("looking for the image below %s: found %q: %w", s.data(), found, err)
	}
	return found[0], nil
}
