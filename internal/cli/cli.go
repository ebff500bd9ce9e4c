// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/cli/config"
	"github.com/spf13/cobra"
)

// Main is one run of the command line.
type Main struct {
	// Version is what "oc version" prints.
	Version string
	// NewKey makes what "oc store new-key" prints.
	NewKey func() string

	extra    []*cobra.Command
	notify   notifier
	patience time.Duration // with a server that is gone; see outage
}

// New makes a Main whose command tree also has the extra commands. They inherit
// the global flags (--json among them) and read and write through their
// cobra.Command; an error that they return is printed and turned into an exit
// code like any other (see ExitCode and fault.Fault).
func New(extra ...*cobra.Command) *Main {
	return &Main{Version: "dev", extra: extra, notify: osSignals, patience: defaultPatience}
}

// Owns tells whether args (without the program's name) are one of the commands of
// this package, whatever else they hold. Help on all of them is not.
func (m *Main) Owns(args []string) bool {
	root := (&app{}).root()
	cmd, _, err := root.Find(args)
	return err == nil && cmd != root
}

// Run runs the command line args (without the program's name) and gives the exit
// code. The environment has the form of os.Environ. The writers may be called by
// several goroutines, one at a time each unless they are files. Run can be called
// once.
//
// Run handles signals itself: ctx should not end with them, because Ctrl-C in
// exec is the remote command's.
func (m *Main) Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	a := &app{
		version: m.Version, newKey: m.NewKey, args: args, notify: m.notify, patience: m.patience,
		in: stdin, out: stdout, err: stderr, env: environment(env),
		transport: transport,
	}
	root := a.root(m.extra...)
	a.track(root)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)

	cmd, err := root.ExecuteContextC(ctx)
	var code ExitCode
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &code):
		return int(code)
	}
	url, _, _ := a.target()
	f := explain(err, url)
	if !a.started && f.hint == "" {
		f.hint = cmd.CommandPath() + " --help"
	}
	f.print(stderr, a.wantsJSON())
	return f.code
}

// app is what the commands of one run share.
type app struct {
	version   string
	newKey    func() string
	args      []string
	in        io.Reader
	out, err  io.Writer
	env       map[string]string
	notify    notifier
	patience  time.Duration
	transport http.RoundTripper

	flags   globalFlags
	started bool // a command's own code began: errors are no longer about usage
}

// globalFlags are the flags of every command.
type globalFlags struct {
	apiKey, apiURL string
	json           bool
}

// environment indexes the form of os.Environ.
func environment(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, e := range env {
		if k, v, ok := strings.Cut(e, "="); ok {
			m[k] = v
		}
	}
	return m
}

// track notes when a command's own code begins.
func (a *app) track(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		a.track(sub)
	}
}

// wantsJSON tells whether errors go out as JSON. It also holds when the flags
// could not be parsed.
func (a *app) wantsJSON() bool {
	if a.flags.json {
		return true
	}
	own := a.args
	if i := slices.Index(own, "--"); i >= 0 {
		own = own[:i]
	}
	return !a.started && slices.Contains(own, "--json")
}

// home is the user's home directory.
func (a *app) home() (string, error) {
	if h := a.env["HOME"]; h != "" {
		return h, nil
	}
	return "", usage("set HOME", "cannot find the configuration file: HOME is not set")
}

// The environment variables that stand for flags.
const (
	envAPIKey = "OPENCOMPUTER_API_KEY"
	envAPIURL = "OPENCOMPUTER_API_URL"
)

// target gives the server's URL and the key: a flag wins over the environment,
// that over the configuration file, that over the default.
func (a *app) target() (apiURL, apiKey string, err error) {
	var file config.File
	if a.env["HOME"] != "" {
		if file, err = config.Load(a.env["HOME"]); err != nil {
			return config.DefaultAPIURL, "", err
		}
	}
	apiURL = first(a.flags.apiURL, a.env[envAPIURL], file.APIURL, config.DefaultAPIURL)
	apiKey = first(a.flags.apiKey, a.env[envAPIKey], file.APIKey)
	return apiURL, apiKey, nil
}

// first gives the first string that is not empty.
func first(candidates ...string) string {
	for _, s := range candidates {
		if s != "" {
			return s
		}
	}
	return ""
}

// client makes the API client, warning when there is no key.
func (a *app) client() (*client.Client, error) {
	apiURL, apiKey, err := a.target()
	if err != nil {
		return nil, err
	}
	if apiKey == "" {
		a.warn("no API key configured. Set %s or run 'oc config set api-key <key>'", envAPIKey)
	}
	return client.New(apiURL, apiKey, client.WithHTTPClient(&http.Client{
		Transport:     a.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}))
}

// call runs the body of a command that talks to the server and that Ctrl-C ends.
func (a *app) call(cmd *cobra.Command, body func(ctx context.Context, c *client.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := a.interruptible(cmd.Context())
	defer stop()
	return body(ctx, c)
}

// warn prints a line that does not end the command.
func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.err, "Warning: %s\n", printable(fmt.Sprintf(format, args...)))
}

// say prints a line of human output; what is put into it is made printable.
func (a *app) say(format string, args ...any) error {
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = printable(s)
		}
	}
	_, err := fmt.Fprintf(a.out, format+"\n", args...)
	return err
}

// answer prints v as JSON with --json, and calls human without.
func (a *app) answer(v any, human func() error) error {
	if a.flags.json {
		return writeJSON(a.out, v)
	}
	return human()
}

// notifier delivers the signals that it is asked for until stop is called.
type notifier func(signals ...os.Signal) (received <-chan os.Signal, stop func())

// osSignals is the notifier of a real process.
func osSignals(signals ...os.Signal) (<-chan os.Signal, func()) {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, signals...)
	return ch, func() { signal.Stop(ch) }
}
