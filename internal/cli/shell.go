// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// closeTime bounds how long leaving a shell may take.
const closeTime = 5 * time.Second

func (a *app) newShell() *cobra.Command {
	var shell string
	cmd := &cobra.Command{
		Use: "shell <sandbox>", Short: "Open a shell on a terminal in a sandbox", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s := &shellSession{app: a, client: c, sandbox: args[0], shell: shell}
			return s.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&shell, "shell", "", "program to run (default: bash)")
	return cmd
}

// shellSession is one use of a shell.
type shellSession struct {
	app            *app
	client         *client.Client
	sandbox, shell string

	fd      int    // of the terminal
	session string // the remote terminal
}

// run opens the remote terminal, joins it to ours and takes it down again.
func (s *shellSession) run(ctx context.Context) error {
	var ok bool
	if s.fd, ok = terminalFD(s.app.in); !ok {
		return usage("oc exec "+s.sandbox+" -- COMMAND", "failed to enter raw mode: standard input is not a terminal")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	received, stop := s.app.notify(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH)
	defer stop()
	if _, err := s.client.GetSandbox(ctx, s.sandbox); err != nil {
		return fmt.Errorf("failed to get sandbox: %w", err)
	}
	cols, rows := s.size()
	pty, err := s.client.OpenPTY(ctx, s.sandbox, client.PTYRequest{Cols: cols, Rows: rows, Shell: s.shell})
	if err != nil {
		return fmt.Errorf("failed to create PTY: %w", err)
	}
	s.session = pty.SessionID
	defer s.close(ctx)

	var wg sync.WaitGroup
	wg.Go(func() { s.watch(ctx, received, cancel) })
	defer wg.Wait()
	defer cancel(nil)
	code, err := s.join(ctx)
	var signalled ExitCode
	if errors.As(context.Cause(ctx), &signalled) {
		return signalled
	}
	return exitWith(code, err)
}

// join puts our terminal into raw mode and passes bytes both ways until the shell
// ends with a code. A terminal's session is followed like any other, so that a
// lost connection is taken up where it broke.
func (s *shellSession) join(ctx context.Context) (code int, err error) {
	keys, err := newInput(s.app.in, false, true) // others may type, too
	if err != nil {
		return exitNoCode, err
	}
	defer keys.end()
	old, err := term.MakeRaw(s.fd)
	if err != nil {
		return exitNoCode, fmt.Errorf("failed to enter raw mode: %w", err)
	}
	defer func() { _ = term.Restore(s.fd, old) }()
	f := &follower{
		app: s.app, client: s.client, sandbox: s.sandbox, session: s.session,
		stdout: s.app.out, stderr: s.app.out, input: keys,
		outage: func() { fmt.Fprint(s.app.out, "\r\noc: connection lost, trying again\r\n") },
	}
	code, err = f.follow(ctx)
	if err != nil && !f.patient {
		err = fmt.Errorf("failed to connect: %w", err)
	}
	return code, err
}

// watch follows our terminal's size, and leaves on a signal to end. In raw mode
// Ctrl-C is no signal but a byte for the shell.
func (s *shellSession) watch(ctx context.Context, received <-chan os.Signal, cancel context.CancelCauseFunc) {
	cols, rows := 0, 0
	for {
		if c, r := s.size(); c != cols || r != rows {
			cols, rows = c, r
			if err := s.client.ResizePTY(ctx, s.sandbox, s.session, cols, rows); err != nil {
				cols, rows = 0, 0 // the next change tries again
			}
		}
		select {
		case <-ctx.Done():
			return
		case sig := <-received:
			if number, ok := sig.(syscall.Signal); ok && sig != syscall.SIGWINCH {
				cancel(ExitCode(128 + int(number)))
				return
			}
		}
	}
}

// size is the size of our terminal, 0 if it has none.
func (s *shellSession) size() (cols, rows int) {
	cols, rows, err := term.GetSize(s.fd)
	if err != nil {
		return 0, 0
	}
	return cols, rows
}

// close ends the remote terminal.
func (s *shellSession) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	// It is gone already if the shell ended or the sandbox was stopped.
	_ = s.client.ClosePTY(ctx, s.sandbox, s.session)
}
