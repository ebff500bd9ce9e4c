// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/cli/config"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/keeper"
	"github.com/opencomputer/oc/internal/node"
)

func serveCommand() *cobra.Command {
	var s node.Settings
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the server in the foreground (as root)",
		Long: `Run the server in the foreground, as root. Sandboxes run on when it ends, and are
adopted by the next one.

Each flag can also be set by its environment variable, or in the configuration
file by its name; a flag wins over the environment, that over the file. At the
first start an API key is made and written to ~/.oc/config.json of the invoking
user.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.Complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			log, err := logger(s, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := leaveMemory(s); err != nil {
				return err
			}
			debug.SetGCPercent(gcPercent)
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return serve(ctx, s, log, cmd.OutOrStdout())
		},
	}
	s.Bind(cmd.Flags())
	return cmd
}

// gcPercent is how much garbage there may be beside what the server uses, in
// percent of that. While a gigabyte is stored that is 100 MB of buffers and tables; the
// machine's memory is the sandboxes'.
const gcPercent = 50

// leaveMemory goes on as the kept copy of this build where the program runs from
// a file of memory, into which oc puts it: a server lives long, and its program's
// pages shall be the disk's. Who is not root is told so later.
func leaveMemory(s node.Settings) error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil || !strings.HasPrefix(self, "/memfd:") || os.Geteuid() != 0 {
		return err
	}
	kept, err := node.KeepBuild(s.DataDir)
	if err != nil {
		return err
	}
	return fmt.Errorf("starting the server from %s: %w", kept, unix.Exec(kept, os.Args, os.Environ()))
}

func serve(ctx context.Context, s node.Settings, log *slog.Logger, out io.Writer) error {
	n, err := node.Open(ctx, s, log)
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Serve(ctx, s.Listen, func(url string) error {
		fmt.Fprintf(out, "OpenComputer serves %s (data in %s)\n", url, s.DataDir)
		// Not before: a start that fails must not be the first one, whose key
		// nobody has seen.
		return n.FirstKey(ctx, func(key string) { introduce(out, url, key) })
	})
}

// introduce writes the first key to the invoking user's configuration. Where
// that points to another server, or cannot be written, it says how to use the
// key: it is never lost.
func introduce(out io.Writer, url, key string) {
	home, err := invokerHome()
	var f config.File
	if err == nil {
		f, err = config.Load(home)
	}
	use := fmt.Sprintf("To use this server:\n  oc config set api-url %s && oc config set api-key %s\n", url, key)
	switch {
	case err != nil:
		fmt.Fprintf(out, "No configuration was written: %v. %s", err, use)
		return
	case f.APIURL != "" && f.APIURL != url || f.APIURL == "" && f.APIKey != "" && url != config.DefaultAPIURL:
		fmt.Fprintf(out, "%s points to another server and was left alone. %s", config.Path(home), use)
		return
	}
	f.APIURL, f.APIKey = url, key
	if err := f.Save(home); err != nil {
		fmt.Fprintf(out, "No configuration was written: %v. %s", err, use)
		return
	}
	fmt.Fprintf(out, "The first API key was written to %s; more with `oc key create`.\n", config.Path(home))
}

// invokerHome is the home of the user behind sudo, or of the user itself.
func invokerHome() (string, error) {
	if name := os.Getenv("SUDO_USER"); name != "" {
		u, err := user.Lookup(name)
		if err != nil {
			return "", fmt.Errorf("looking up SUDO_USER: %w", err)
		}
		return u.HomeDir, nil
	}
	if home, err := os.UserHomeDir(); err == nil {
		return home, nil
	}
	u, err := user.Current() // without HOME, as under systemd
	if err != nil {
		return "", fmt.Errorf("finding the home directory: %w", err)
	}
	return u.HomeDir, nil
}

func logger(s node.Settings, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.LogLevel)); err != nil {
		return nil, fault.New(fault.Invalid, "log level %q is not debug, info, warn or error", s.LogLevel)
	}
	o := &slog.HandlerOptions{Level: level}
	switch s.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fault.New(fault.Invalid, "log format %q is not text or json", s.LogFormat)
}

func keeperCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use: node.KeeperCommand, Short: "Hold the sockets of sandboxes while the server restarts", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" {
				return errors.New("--socket is missing")
			}
			return keeper.Main(socket, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "", "path of the unix socket")
	return cmd
}
