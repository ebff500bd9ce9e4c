// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/fault"
)

// The exit codes of oc. The commands exec and shell give the remote code
// instead when the remote command ran.
const (
	ExitOK          = 0
	ExitGeneral     = 1   // wrong usage, or a failure on this side (such as no connection)
	ExitRequest     = 3   // the server refused the request (HTTP 4xx)
	ExitConflict    = 4   // it clashes with the present state (HTTP 409)
	ExitServer      = 5   // the server failed (HTTP 5xx)
	ExitInterrupted = 130 // ended by Ctrl-C
	exitNoCode      = 255 // the remote command ended without a code, or we left it
)

// ExitCode is an error that ends oc with that code and prints nothing: all
// there is to say has been said.
type ExitCode int

// Error satisfies error; it is not shown.
func (c ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usage makes the error of a command line that is wrong. The hint may be empty.
func usage(hint, format string, args ...any) error {
	f := fault.New(fault.Invalid, format, args...)
	f.Hint = hint
	return f
}

// interruptedError is the end of a call by Ctrl-C that the server may carry out
// all the same, with how to learn whether it does.
type interruptedError struct{ hint string }

// Error says what happened.
func (*interruptedError) Error() string { return "interrupted" }

// goesOn gives the error of a call, with what to look at if it was interrupted.
func goesOn(err error, format string, args ...any) error {
	if errors.Is(err, context.Canceled) {
		return &interruptedError{fmt.Sprintf(format, args...)}
	}
	return err
}

// failure is what the user is told about an error.
type failure struct {
	code    int
	message string
	hint    string
}

// explain turns an error into what the user is told.
func explain(err error, apiURL string) failure {
	var left *leftError
	if errors.As(err, &left) {
		f := explain(left.err, apiURL)
		f.code = exitNoCode
		return f
	}
	var remote *client.Error
	if errors.As(err, &remote) {
		return explainRemote(remote, err.Error())
	}
	var local *fault.Fault
	if errors.As(err, &local) {
		return failure{ExitGeneral, local.Error(), local.Hint}
	}
	var broken *interruptedError
	if errors.As(err, &broken) {
		return failure{ExitInterrupted, broken.Error(), broken.hint}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return failure{ExitInterrupted, "interrupted", ""}
	case errors.Is(err, syscall.ECONNREFUSED):
		return failure{ExitGeneral, "no server answers at " + apiURL,
			"start one with 'sudo oc up', or point at another with 'oc config set api-url URL'"}
	}
	return failure{ExitGeneral, err.Error(), ""}
}

// explainRemote derives exit code and hint from the server's answer; message may
// say more than the answer does.
func explainRemote(e *client.Error, message string) failure {
	f := failure{ExitRequest, message, e.Hint}
	switch {
	case e.Status == http.StatusConflict:
		f.code = ExitConflict
	case e.Status >= 500:
		f.code = ExitServer
	case e.Status < 400:
		f.code = ExitGeneral
	}
	if f.hint == "" && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) {
		f.hint = "set a valid key with 'oc config set api-key KEY' or OPENCOMPUTER_API_KEY"
	}
	if f.message == "" {
		f.message = http.StatusText(e.Status)
	}
	return f
}

// print writes the failure: as "Error:" and "Try:" lines, or with --json as one
// line of JSON.
func (f failure) print(w io.Writer, asJSON bool) {
	if asJSON {
		line, err := json.Marshal(struct {
			Code  int    `json:"code"`
			Error string `json:"error"`
			Hint  string `json:"hint,omitempty"`
		}{f.code, f.message, f.hint})
		if err == nil {
			fmt.Fprintf(w, "%s\n", line)
			return
		}
	}
	fmt.Fprintf(w, "Error: %s\n", printableLines(f.message))
	if f.hint != "" {
		fmt.Fprintf(w, "Try: %s\n", printableLines(f.hint))
	}
}
