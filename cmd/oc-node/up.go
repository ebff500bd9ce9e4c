// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/node"
)

const (
	// upTimeout bounds how long a server may take to answer.
	upTimeout = 60 * time.Second
	// downTimeout bounds how long it may take to end.
	downTimeout = 60 * time.Second
	waitPoll    = 20 * time.Millisecond
	// healthTimeout bounds one question whether it answers.
	healthTimeout = 5 * time.Second
)

func upCommand() *cobra.Command {
	var s node.Settings
	cmd := &cobra.Command{
		Use: "up", Short: "Start the server in the background, and wait until it answers",
		Long: `Start the server in the background, as root, and wait until it answers. Nothing
happens if it runs already. The flags are those of oc serve; its log goes to
server.log in the data directory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			args := serveArgs(cmd.Flags()) // what Complete takes from elsewhere, the server finds there too
			if err := s.Complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			return up(cmd, s, args)
		},
	}
	s.Bind(cmd.Flags())
	return cmd
}

// upJSON is what oc up prints as JSON.
type upJSON struct {
	Up      bool `json:"up"`
	Already bool `json:"already"` // before
	node.Instance
}

func up(cmd *cobra.Command, s node.Settings, serve []string) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), upTimeout)
	defer cancel()
	if i, err := answering(ctx, s.DataDir); err != nil {
		return err
	} else if i != nil {
		return sayUp(cmd, upJSON{Up: true, Already: true, Instance: *i})
	}
	if os.Geteuid() != 0 {
		return fault.New(fault.Invalid, "the server must run as root").WithHint("sudo oc up")
	}
	if err := os.MkdirAll(s.DataDir, 0o711); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the data directory %s cannot be made", s.DataDir)
	}
	logPath := filepath.Join(s.DataDir, "server.log")
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the server's log: %w", err)
	}
	defer logFile.Close()
	began, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("opening the server's log: %w", err)
	}
	c := exec.Command("/proc/self/exe", serve...)
	c.Stdout, c.Stderr = logFile, logFile
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- c.Wait() }()
	i, err := waitHealthy(ctx, s.DataDir, exited)
	if err != nil {
		return notUp(err, logSince(logFile, began), logPath)
	}
	if err := sayUp(cmd, upJSON{Up: true, Instance: *i}); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if wantsJSON(cmd) {
		out = cmd.ErrOrStderr() // beside the document
	}
	// What the server said of its first key goes to its log; say it here too.
	for _, line := range bytes.Split([]byte(logSince(logFile, began)), []byte("\n")) {
		if bytes.Contains(line, []byte("API key was written")) || bytes.Contains(line, []byte("To use this server:")) || bytes.HasPrefix(line, []byte("  oc config")) {
			fmt.Fprintf(out, "%s\n", line)
		}
	}
	return nil
}

func sayUp(cmd *cobra.Command, u upJSON) error {
	if wantsJSON(cmd) {
		return printJSON(cmd, u)
	}
	if u.Already {
		fmt.Fprintf(cmd.OutOrStdout(), "OpenComputer is up already: %s (pid %d)\n", u.APIURL, u.PID)
		return nil
	}
	fmt.Fprintf(cmd.OutOrStdout(), "OpenComputer is up: %s (pid %d, data in %s)\n", u.APIURL, u.PID, u.DataDir)
	return nil
}

// serveArgs gives the command line of the server with the settings that stand on
// the one of up.
func serveArgs(flags *pflag.FlagSet) []string {
	args := []string{"serve"}
	flags.Visit(func(f *pflag.Flag) {
		if strings.Contains(f.Usage, "(env OC_") { // one of the server's
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	return args
}

// notUp says why the server did not come up: in its own words if its log ends
// with an error and what to try.
func notUp(err error, logged, logPath string) error {
	hint := "see " + logPath
	if i := strings.LastIndex("\n"+logged, "\nError: "); i >= 0 {
		message, try, ok := strings.Cut(strings.TrimPrefix(logged[i:], "Error: "), "\nTry: ")
		if ok {
			hint = strings.TrimSpace(try) + "; its log is " + logPath
		}
		return fault.New(fault.Unavailable, "the server did not come up: %s", strings.TrimSpace(message)).WithHint("%s", hint)
	}
	return fault.Wrap(fault.Unavailable, err, "the server did not come up: %s", logged).WithHint("%s", hint)
}

// answering gives the server of the data directory when it answers, or nil when
// there is none: one that was killed is seen for a while as it dies.
func answering(ctx context.Context, dataDir string) (*node.Instance, error) {
	for {
		i, err := node.FindInstance(dataDir)
		if err != nil || i == nil || healthy(ctx, i) {
			return i, err
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "the server with pid %d does not answer", i.PID).
				WithHint("see server.log in %s, or end it with `oc down`", dataDir)
		case <-time.After(waitPoll):
		}
	}
}

func healthy(ctx context.Context, i *node.Instance) bool {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	c, err := client.New(i.APIURL, "")
	if err == nil {
		_, err = c.Health(ctx)
	}
	return err == nil
}

// waitHealthy waits until the server of the data directory answers.
func waitHealthy(ctx context.Context, dataDir string, exited <-chan error) (*node.Instance, error) {
	for {
		if i, err := node.FindInstance(dataDir); err == nil && i != nil && healthy(ctx, i) {
			return i, nil
		}
		select {
		case err := <-exited:
			return nil, errors.Join(errors.New("it ended"), err)
		case <-ctx.Done():
			return nil, fmt.Errorf("it does not answer: %w", ctx.Err())
		case <-time.After(waitPoll):
		}
	}
}

// logSince gives what was logged since an offset, at most 4 KiB of it.
func logSince(f *os.File, off int64) string {
	b := make([]byte, 4<<10)
	n, _ := f.ReadAt(b, off) // short at the end of the file
	return string(bytes.TrimSpace(b[:n]))
}

func downCommand() *cobra.Command {
	var (
		s    node.Settings
		kill bool
	)
	cmd := &cobra.Command{
		Use: "down", Short: "Stop the server; sandboxes run on unless --kill",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.Complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			stopped, err := down(cmd.Context(), s)
			if err != nil {
				return err
			}
			said := downJSON{Stopped: stopped, DataDir: s.DataDir}
			if !wantsJSON(cmd) {
				fmt.Fprintln(cmd.OutOrStdout(), said)
			}
			if kill {
				said.Killed, err = killAll(cmd, s)
			}
			if wantsJSON(cmd) {
				return errors.Join(err, printJSON(cmd, said))
			}
			return err
		},
	}
	s.BindDataDir(cmd.Flags())
	cmd.Flags().BoolVar(&kill, "kill", false, "end all sandboxes too; their checkpoints stay")
	return cmd
}

// downJSON is what oc down prints as JSON.
type downJSON struct {
	Up      bool   `json:"up"`      // false: it is down now
	Stopped bool   `json:"stopped"` // false: it was not up
	DataDir string `json:"dataDir"`
	Killed  *int   `json:"killed,omitempty"` // sandboxes, with --kill
}

// String says it to a person.
func (d downJSON) String() string {
	if d.Stopped {
		return "OpenComputer is down."
	}
	return "OpenComputer is not up."
}

// killAll ends the sandboxes, and says how many that were.
func killAll(cmd *cobra.Command, s node.Settings) (*int, error) {
	n, err := node.OpenToKill(cmd.Context(), s, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return nil, err
	}
	defer n.Close()
	killed, err := n.KillAll(cmd.Context())
	if !wantsJSON(cmd) {
		fmt.Fprintf(cmd.OutOrStdout(), "%d sandboxes killed.\n", killed)
	}
	return &killed, err
}

// down stops the server of the data directory, if there is one.
func down(ctx context.Context, s node.Settings) (stopped bool, err error) {
	i, err := node.FindInstance(s.DataDir)
	if err != nil || i == nil {
		return false, err
	}
	if err := syscall.Kill(i.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return false, fault.Wrap(fault.Invalid, err, "the server with pid %d cannot be stopped", i.PID).WithHint("run oc down as root")
	}
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	for i.Alive() { // by then it has given up its lock on the data
		select {
		case <-ctx.Done():
			return false, fault.New(fault.Unavailable, "the server with pid %d does not end", i.PID).WithHint("see server.log in %s", s.DataDir)
		case <-time.After(waitPoll):
		}
	}
	return true, nil
}

func statusCommand() *cobra.Command {
	var s node.Settings
	cmd := &cobra.Command{
		Use: "status", Short: "Say whether the server is up, and what it holds",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.Complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			st, err := node.ReadStatus(cmd.Context(), s)
			if err != nil {
				return err
			}
			if wantsJSON(cmd) {
				return printJSON(cmd, st)
			}
			printStatus(cmd.OutOrStdout(), st)
			return nil
		},
	}
	s.Bind(cmd.Flags())
	return cmd
}

func printStatus(out io.Writer, st node.Status) {
	if !st.Up {
		fmt.Fprintln(out, "OpenComputer is not up.")
	} else {
		fmt.Fprintf(out, "OpenComputer is up.\nURL:          %s\nPID:          %d\nVersion:      %s\n", st.APIURL, st.PID, st.Version)
	}
	fmt.Fprintf(out, "Data:         %s\n", st.DataDir)
	if st.Counts == nil {
		fmt.Fprintln(out, "What it holds is shown to root only.")
		return
	}
	fmt.Fprintf(out, "Sandboxes:    %d running, %d in error\nCheckpoints:  %d ready\nTemplates:    %d\n",
		st.Counts.Running, st.Counts.Error, st.Counts.Checkpoints, st.Counts.Templates)
}
