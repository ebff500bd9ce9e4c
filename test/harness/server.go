// SPDX-License-Identifier: Apache-2.0

// Package harness runs servers of the built oc for end-to-end tests.
//
// A Server has a data directory, a home, a port and a configuration file of its
// own, so that any number of them run side by side and beside a real one. Close
// ends it with all its sandboxes and says what it left behind on the machine;
// if the test process dies before, a minder closes it.
//
// The package drives the product from outside: the command line, the HTTP API
// and what can be seen in /proc and /sys. It imports nothing of the product but
// its client.
package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencomputer/oc/client"
)

// Server is one server and its data.
type Server struct {
	Root   string // directory of everything below
	Data   string // data directory
	Home   string // HOME of those who call it
	URL    string // of the API, the same over restarts
	Key    string // API key of the default org
	binary string
	env    []string // more of the environment
	minder *minder
	moved  bool // its data went to another one
}

// Settings are the server's, by the names of its flags.
type Settings map[string]any

// New prepares a server in a new directory below parent ("" = the system's
// directory for temporary files) without starting it. env is added to the
// environment.
func New(parent string, settings Settings, env ...string) (*Server, error) {
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp(parent, "oc-test-")
	if err != nil {
		return nil, err
	}
	s := &Server{Root: root, Data: filepath.Join(root, "data"), Home: filepath.Join(root, "home"), binary: binary, env: env}
	if err := os.Mkdir(s.Home, 0o700); err != nil {
		return nil, err
	}
	if settings == nil {
		settings = Settings{}
	}
	if settings["listen"] == nil {
		settings["listen"] = "127.0.0.1:0"
	}
	if err := s.configure(settings); err != nil {
		return nil, err
	}
	s.minder, err = newMinder(s)
	return s, err
}

// Binary is the oc under test: $OC_BIN, or bin/oc of this tree.
func Binary() (string, error) {
	path := os.Getenv("OC_BIN")
	if path == "" {
		path = filepath.Join("..", "..", "bin", "oc")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no oc to test: %w; run make build, or set OC_BIN", err)
	}
	if os.Geteuid() != 0 {
		return "", errors.New("sandboxes need root: run the tests as root")
	}
	return path, nil
}

func (s *Server) configFile() string { return filepath.Join(s.Home, "server.json") }

func (s *Server) configure(settings Settings) error {
	b, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	return os.WriteFile(s.configFile(), b, 0o600)
}

// Up starts the server with oc up. From the second time on it listens where it
// did the first time.
func (s *Server) Up(ctx context.Context) error {
	out, err := s.Run(ctx, nil, "up")
	if err != nil {
		return err
	}
	if out.Code != 0 {
		return fmt.Errorf("%s", out)
	}
	if s.URL != "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(s.Home, ".oc", "config.json"))
	if err != nil {
		return fmt.Errorf("oc up left no configuration: %w", err)
	}
	var config struct {
		URL string `json:"api_url"`
		Key string `json:"api_key"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return fmt.Errorf("the configuration that oc up left: %w", err)
	}
	u, err := url.Parse(config.URL)
	if err != nil {
		return err
	}
	s.URL, s.Key = config.URL, config.Key
	return s.Set("listen", u.Host)
}

// Set changes a setting, for the next start.
func (s *Server) Set(name string, value any) error {
	b, err := os.ReadFile(s.configFile())
	if err != nil {
		return err
	}
	settings := Settings{}
	if err := json.Unmarshal(b, &settings); err != nil {
		return err
	}
	settings[name] = value
	return s.configure(settings)
}

// UpWith is Up with more in the environment of this one start.
func (s *Server) UpWith(ctx context.Context, env ...string) error {
	before := s.env
	defer func() { s.env = before }()
	s.env = append(slices.Clone(before), env...)
	return s.Up(ctx)
}

// Down stops the server; sandboxes run on.
func (s *Server) Down(ctx context.Context) error {
	out, err := s.Run(ctx, nil, "down")
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("%s", out)
	}
	return err
}

// Client calls the API with a key.
func (s *Server) Client(key string) (*client.Client, error) { return client.New(s.URL, key) }

// Log is what the server has logged.
func (s *Server) Log() string {
	b, err := os.ReadFile(filepath.Join(s.Data, "server.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// closeTime bounds how long ending a server may take, and how long the kernel
// may need to take away what it ended.
const (
	closeTime  = 90 * time.Second
	settleTime = 10 * time.Second
	settlePoll = 50 * time.Millisecond
)

// Stop ends the server with its sandboxes. Its error names what is left behind on
// the machine.
func (s *Server) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	out, err := s.Run(ctx, nil, "down", "--kill")
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("%s", out)
	}
	if err != nil {
		return err
	}
	left := s.Leftovers()
	for deadline := time.Now().Add(settleTime); len(left) > 0 && time.Now().Before(deadline); left = s.Leftovers() {
		<-time.After(settlePoll)
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind by %s:\n  %s", s.Data, strings.Join(left, "\n  "))
	}
	return nil
}

// Close is Stop, and removes the server's directory.
func (s *Server) Close() error {
	if s.moved {
		return os.RemoveAll(s.Root)
	}
	if err := s.Stop(); err != nil {
		return errors.Join(err, s.minder.release("failed")) // the minder tries again
	}
	return errors.Join(os.RemoveAll(s.Root), s.minder.release("closed"))
}

// Move takes the data directory of a stopped server to another place, and gives
// the server there, not started. The one before is not to be started again.
func (s *Server) Move() (*Server, error) {
	to, err := New(filepath.Dir(s.Root), Settings{}, s.env...)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Rename(s.Data, to.Data), os.RemoveAll(to.Home), os.Rename(s.Home, to.Home), s.minder.release("closed")); err != nil {
		return nil, errors.Join(err, to.Close())
	}
	s.moved = true
	to.URL, to.Key = s.URL, s.Key
	return to, nil
}

// Output is how a run of oc ended.
type Output struct {
	Args           []string
	Code           int
	Stdout, Stderr string
}

// String shows the run as a person would have seen it.
func (o Output) String() string {
	return fmt.Sprintf("$ oc %s\n%s%s(exit code %d)", strings.Join(o.Args, " "), o.Stdout, o.Stderr, o.Code)
}

// Environ is the environment in which oc talks to this server.
func (s *Server) Environ() []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.Home, "OC_DATA_DIR=" + s.Data, "OC_CONFIG=" + s.configFile(),
	}, s.env...)
}

// Command makes a command of oc, not started. A cancelled context kills it.
func (s *Server) Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, s.binary, args...)
	c.Env = s.Environ()
	c.Dir = s.Home
	return c
}

// Run runs oc to its end; stdin may be nil. An error says that it could not be
// run, or not to its end; how it ended is in the output.
func (s *Server) Run(ctx context.Context, stdin io.Reader, args ...string) (Output, error) {
	c := s.Command(ctx, args...)
	var stdout, stderr bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = stdin, &stdout, &stderr
	c.WaitDelay = time.Second
	err := c.Run()
	out := Output{Args: args, Code: c.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", out, errors.Join(err, ctx.Err()))
	}
	return out, err
}

// minder is a process that closes a server whose test died.
type minder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// newMinder starts the minder: a shell that reads one word from a pipe which
// ends with this process.
func newMinder(s *Server) (*minder, error) {
	const script = `read -r word; [ "$word" = closed ] || { "$0" down --kill; rm -rf --one-file-system "$1"; } >/dev/null 2>&1`
	c := exec.Command("/bin/sh", "-c", script, s.binary, s.Root)
	c.Env = s.Environ()
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // outlives a Ctrl-C
	in, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	return &minder{c, in}, err
}

// release tells the minder how the end was, and waits for it.
func (m *minder) release(how string) error {
	_, err := io.WriteString(m.in, how+"\n")
	err = errors.Join(err, m.in.Close())
	_ = m.cmd.Wait() // its code is that of its last try
	return err
}
