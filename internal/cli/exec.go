// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

const execHelp = `Run a command in a sandbox: its output is streamed, standard input is forwarded,
and its exit code is oc's.

The command is executed as given, without a shell; write -- bash -c '…' for one.
The -- may be left out when nothing in or after the command looks like a flag.
Ctrl-C sends SIGINT to the command; a second one leaves it running and exits
with 255. Other signals (SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2) are
forwarded. If the server restarts, the output goes on where it stopped.`

// execOptions are the flags of exec.
type execOptions struct {
	cwd, user    string
	envs         []string
	timeout      int
	detach, wait bool
}

func (a *app) newExec() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use: "exec <sandbox> [flags] -- <command> [args...]", Short: "Run a command in a sandbox", Long: execHelp,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			sandbox, argv, err := splitExec(args, cmd.ArgsLenAtDash(), a.args)
			if err != nil {
				return err
			}
			req, err := o.request(argv)
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), sandbox, req, o)
		},
	}
	cmd.SetFlagErrorFunc(func(failed *cobra.Command, err error) error {
		if failed != cmd { // a subcommand, which inherits this
			return usage(failed.CommandPath()+" --help", "%s", err)
		}
		return usage("put -- before the command: oc exec SANDBOX -- COMMAND ARGS...", "%s", err)
	})
	f := cmd.Flags()
	f.StringVar(&o.cwd, "cwd", "", "working directory (default: the user's home)")
	f.StringArrayVar(&o.envs, "env", nil, "environment, `K=V` (repeat, or separate by commas)")
	f.IntVar(&o.timeout, "timeout", 0, "kill it after this many seconds; 0 = never")
	f.StringVar(&o.user, "user", "", "run as this user (default: sandbox)")
	f.BoolVar(&o.detach, "detach", false, "leave it running and print its session")
	f.BoolVar(&o.wait, "wait", false, "print the output at the end")
	cmd.AddCommand(a.newExecList(), a.newExecAttach(), a.newExecKill())
	return cmd
}

// splitExec takes the arguments of exec apart. dash is how many of them stand
// before "--", -1 without one; raw is the whole command line. Without "--" the
// command must be the end of the command line as it is, else a flag in it was
// taken for one of oc's.
func splitExec(args []string, dash int, raw []string) (sandbox string, argv []string, err error) {
	if len(args) < 2 {
		return "", nil, usage("", "no command specified. Usage: oc exec <sandbox-id> -- <command>")
	}
	sandbox, argv = args[0], args[1:]
	plain := dash < 0 && len(raw) >= len(argv) && slices.Equal(raw[len(raw)-len(argv):], argv)
	if dash != 1 && !plain {
		return "", nil, usage("oc exec "+sandbox+" -- COMMAND ARGS...", "cannot tell the command from oc's own flags")
	}
	return sandbox, argv, nil
}

// request makes what is sent of the flags.
func (o execOptions) request(argv []string) (client.ExecRequest, error) {
	if o.wait && o.detach {
		return client.ExecRequest{}, usage("", "--wait and --detach are mutually exclusive")
	}
	if err := checkTimeout(o.timeout); err != nil {
		return client.ExecRequest{}, err
	}
	envs, err := pairs("env", o.envs)
	return client.ExecRequest{
		Cmd: argv[0], Args: argv[1:], Envs: envs, Cwd: o.cwd, User: o.user, Timeout: o.timeout, Detach: o.detach,
		Key: rand.Text(), // so that a start can be repeated when its answer was lost
	}, err
}

// exec starts a session and follows it.
func (a *app) exec(ctx context.Context, sandbox string, req client.ExecRequest, o execOptions) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	session, err := a.startExec(ctx, c, sandbox, req)
	if err != nil {
		return err
	}
	if o.detach {
		return a.answer(session, func() error {
			line := strings.Join(append([]string{req.Cmd}, req.Args...), " ")
			return a.say("Session %s created (command: %s)\nAttach with: oc exec attach %s %s",
				session.SessionID, line, sandbox, session.SessionID)
		})
	}
	input, err := newInput(a.in, true, true)
	if err != nil {
		return err
	}
	defer input.end()
	f := &follower{
		app: a, client: c, sandbox: sandbox, session: session.SessionID, patient: true,
		stdout: a.out, stderr: a.err, input: input,
	}
	if a.flags.json || o.wait {
		return a.collect(ctx, f)
	}
	code, err := f.run(ctx)
	return exitWith(code, err)
}

// startExec starts the session. If the connection breaks after it was made, the
// start is repeated; the key in the request makes it one.
func (a *app) startExec(ctx context.Context, c *client.Client, sandbox string, req client.ExecRequest) (client.ExecSession, error) {
	ctx, stop := a.interruptible(ctx)
	defer stop()
	session, err := c.StartExec(ctx, sandbox, req)
	if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		return session, err
	}
	out := outage{patience: a.patience}
	for retryable(err) && out.wait(ctx) {
		if session, err = c.StartExec(ctx, sandbox, req); err == nil {
			return session, nil
		}
	}
	return session, err
}

// execResult is what exec --json prints.
type execResult struct {
	ExitCode  int    `json:"exitCode"`
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
	Truncated bool   `json:"truncated,omitempty"`
}

// collect follows a session keeping its output, and prints it at the end.
func (a *app) collect(ctx context.Context, f *follower) error {
	var stdout, stderr keeper
	f.stdout, f.stderr = &stdout, &stderr
	code, err := f.run(ctx)
	if err != nil {
		return exitWith(code, err)
	}
	truncated := stdout.dropped > 0 || stderr.dropped > 0
	if truncated {
		a.warn("the output is larger than %d MB and was cut; run without --json and --wait to have all of it", maxKept>>20)
	}
	if a.flags.json {
		err = writeJSON(a.out, execResult{code, string(stdout.data), string(stderr.data), truncated})
	} else {
		_, err = a.out.Write(stdout.data)
		if _, werr := a.err.Write(stderr.data); err == nil {
			err = werr
		}
	}
	return exitWith(code, err)
}

// maxKept bounds what collect keeps of each stream.
const maxKept = 32 << 20

// keeper keeps the first bytes written to it.
type keeper struct {
	data    []byte
	dropped int64
}

// Write takes everything.
func (k *keeper) Write(p []byte) (int, error) {
	n := min(len(p), maxKept-len(k.data))
	k.data = append(k.data, p[:n]...)
	k.dropped += int64(len(p) - n)
	return len(p), nil
}

var _ io.Writer = (*keeper)(nil)

// exitWith turns the end of a followed session into the command's error.
func exitWith(code int, err error) error {
	switch {
	case err != nil:
		return err
	case code == 0:
		return nil
	case code < 0:
		return ExitCode(exitNoCode)
	}
	return ExitCode(code & 0xff)
}
