// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencomputer/oc/client"
)

// follower passes a session's output on until its process ends, across lost
// connections and in-place restores, and forwards input and signals to it.
type follower struct {
	app              *app
	client           *client.Client
	sandbox, session string
	stdout, stderr   io.Writer
	input            *input
	// patient says that the session is known to exist: a first attach that fails is
	// tried again, too.
	patient bool
	outage  func() // called when a connection was lost; may be nil

	pos   client.Position // just behind the last byte that was passed on
	known bool            // pos is known
	wrote bool            // something was passed on
}

// errDetached says that the user has left the session.
var errDetached = errors.New("detached")

// run follows the session and gives its exit code. An error says that it could
// not be followed to its end.
func (f *follower) run(ctx context.Context) (code int, err error) {
	ctx, detach := context.WithCancelCause(ctx)
	received, stop := f.app.notify(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { f.forwardSignals(ctx, received, detach) })
	defer wg.Wait()
	defer detach(nil)

	code, err = f.follow(ctx)
	if errors.Is(context.Cause(ctx), errDetached) {
		return exitNoCode, nil
	}
	return code, err
}

// follow attaches as often as it takes.
func (f *follower) follow(ctx context.Context) (int, error) {
	out := outage{patience: f.app.patience}
	for {
		began := time.Now()
		stream, err := f.attach(ctx)
		if err == nil {
			var code int
			var output bool
			code, output, err = f.consume(ctx, stream)
			if err == nil {
				return code, nil
			}
			if output || time.Since(began) > settled {
				out.over()
			}
			f.patient = true
			if f.outage != nil && retryable(err) && ctx.Err() == nil {
				f.outage()
			}
		}
		var broken *outputError
		switch {
		case errors.As(err, &broken):
			return f.abandon(ctx, broken)
		case !f.patient:
			return exitNoCode, err
		case !retryable(err):
			return exitNoCode, &leftError{err}
		case f.wrote && !f.known:
			return exitNoCode, &leftError{fmt.Errorf("connection lost, and the server does not say where to go on: %w", err)}
		case !out.wait(ctx):
			return exitNoCode, f.lost(err)
		}
	}
}

// leftError says why a command that ran could not be followed to its end.
type leftError struct{ err error }

// Error gives the cause's text.
func (e *leftError) Error() string { return e.err.Error() }

// Unwrap gives the cause.
func (e *leftError) Unwrap() error { return e.err }

// lost says that the session could not be reached any more, but may run on.
func (f *follower) lost(err error) error {
	return &leftError{usage(fmt.Sprintf("oc exec attach %s %s", f.sandbox, f.session),
		"lost the connection for more than %s: %s", f.app.patience, err)}
}

// attach attaches anew, from where the output was left.
func (f *follower) attach(ctx context.Context) (*client.ExecStream, error) {
	var from *client.Position
	if f.known {
		from = &f.pos
	}
	return f.client.AttachExec(ctx, f.sandbox, f.session, from)
}

// consume passes one connection's output on. Its error is nil when the process
// ended with the code; output says whether the connection brought anything.
func (f *follower) consume(ctx context.Context, stream *client.ExecStream) (code int, output bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		stream.Close()
		wg.Wait()
	}()
	sending := false
	send := func() {
		if !sending {
			sending = true
			wg.Go(func() { f.input.sendTo(ctx, stream) })
		}
	}
	for {
		ev, err := stream.Next(ctx)
		if errors.Is(err, io.EOF) {
			err = errors.New("the server closed the connection")
		}
		if err != nil {
			return 0, output, err
		}
		switch ev.Kind {
		case client.EventPosition:
			f.position(ev.Position, !sending)
			send()
		case client.EventScrollback:
			send()
		case client.EventStdinAck:
			f.input.acknowledge(ev.Position.Stdin)
		case client.EventStdout, client.EventStderr:
			output = true
			if err := f.pass(ev); err != nil {
				return 0, output, err
			}
			f.pos.Offset = stream.Position().Offset
		case client.EventExit:
			if ev.TimedOut { // its exit code does not tell
				f.app.warn("the command was killed: its timeout has passed")
			}
			return ev.ExitCode, output, nil
		}
	}
}

// position takes note of where the output goes on and of how much input was
// taken. The first one of a connection, and one of a new timeline, tell what is to
// be sent again.
func (f *follower) position(p client.Position, first bool) {
	same := f.known && p.Timeline == f.pos.Timeline
	if same && p.Offset > f.pos.Offset {
		f.app.warn("%d bytes of output were dropped while nobody could read them", p.Offset-f.pos.Offset)
	}
	if first || !same {
		f.input.resume(p.Stdin, same)
	}
	f.pos, f.known = p, true
}

// outputError says that our own standard output or error takes no more.
type outputError struct{ err error }

// Error gives the cause's text.
func (e *outputError) Error() string { return "write output: " + e.err.Error() }

// Unwrap gives the cause.
func (e *outputError) Unwrap() error { return e.err }

// pass writes output to where it belongs.
func (f *follower) pass(ev client.Event) error {
	w := f.stdout
	if ev.Kind == client.EventStderr {
		w = f.stderr
	}
	f.wrote = true
	if _, err := w.Write(ev.Data); err != nil {
		return &outputError{err}
	}
	return nil
}

// abandon ends the remote process as a closed pipe would end a local one.
func (f *follower) abandon(ctx context.Context, cause *outputError) (int, error) {
	if !errors.Is(cause, syscall.EPIPE) {
		return exitNoCode, cause
	}
	if _, err := f.client.KillExec(ctx, f.sandbox, f.session, int(syscall.SIGPIPE)); err != nil {
		return exitNoCode, err
	}
	return 128 + int(syscall.SIGPIPE), nil
}

// signalTime bounds how long sending a signal may take.
const signalTime = 10 * time.Second

// forwardSignals sends the signals that oc receives to the remote process. The
// second Ctrl-C detaches, and so does a signal that cannot be sent: oc itself
// must be possible to end.
func (f *follower) forwardSignals(ctx context.Context, received <-chan os.Signal, detach context.CancelCauseFunc) {
	var wg sync.WaitGroup
	defer wg.Wait()
	interrupted := false
	for {
		var sig syscall.Signal
		select {
		case <-ctx.Done():
			return
		case s := <-received:
			sig, _ = s.(syscall.Signal)
		}
		switch sig {
		case syscall.SIGPIPE:
			continue // the write that caused it tells
		case syscall.SIGINT:
			if interrupted {
				detach(errDetached)
				return
			}
			interrupted = true
			fmt.Fprintln(f.app.err, "^C sent SIGINT (press again to force-detach)")
		}
		wg.Go(func() {
			bounded, cancel := context.WithTimeout(ctx, signalTime)
			defer cancel()
			_, err := f.client.KillExec(bounded, f.sandbox, f.session, int(sig))
			if err == nil || ctx.Err() != nil {
				return
			}
			f.app.warn("cannot send signal %d: %s", int(sig), err)
			if sig != syscall.SIGINT && (retryable(err) || bounded.Err() != nil) {
				detach(errDetached)
			}
		})
	}
}
