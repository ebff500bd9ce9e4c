// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newTemplateImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import <name> <file>",
		Short: "Make a template of a root file system tarball, a docker save archive or an OCI layout (a directory or a tar of one)",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				return a.templateImport(ctx, c, args[0], args[1])
			})
		},
	}
}

func (a *app) templateImport(ctx context.Context, c *client.Client, name, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	p := a.progress("Importing template " + name)
	defer p.end()
	var t client.Template
	upload := func(content io.Reader) (err error) {
		t, err = c.ImportTemplate(ctx, name, content, p.step)
		return err
	}
	if info.IsDir() {
		_, err = sendArchive(ctx, file, ".", p.notices(), upload)
	} else {
		err = sendFile(file, upload)
	}
	p.end()
	if err != nil {
		return err
	}
	return a.templateReady(t)
}

// sendFile opens a file for what send reads.
func sendFile(file string, send func(io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := &localReader{r: f}
	err = send(r)
	if own := r.failed(); own != nil {
		return own // not the server's, as err has it
	}
	return err
}

// localReader keeps the error with which reading ended.
type localReader struct {
	r   io.Reader
	mu  sync.Mutex // guards err: who sends may still read when it gives up
	err error
}

// Read reads on.
func (l *localReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
	}
	return n, err
}

func (l *localReader) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
