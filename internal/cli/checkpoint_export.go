// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/spf13/cobra"
)

// standardStream is the file name that means standard input or output.
const standardStream = "-"

func (a *app) newCheckpointExport() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "export <checkpoint> <file>", Short: "Write a checkpoint as one file, which oc checkpoint import takes; - is standard output", Args: cobra.ExactArgs(2),
		Long: `Write a checkpoint as one self-contained file, from which oc checkpoint import
makes a checkpoint on any server. The file appears when it is whole; - is
standard output:

  oc cp export cp-1 - | ssh other oc cp import -

It is not encrypted, and holds the memory of the checkpoint's processes with all
that is secret in it; only its owner can read it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] == standardStream {
				if _, tty := terminalFD(a.out); tty {
					return usage("give the name of a file, or a pipe", "standard output is a terminal")
				}
				if a.flags.json {
					return usage("leave --json out", "standard output cannot take both the file and JSON")
				}
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				if args[1] == standardStream {
					_, err := a.export(ctx, c, args[0], a.out)
					return err
				}
				return a.exportFile(ctx, c, args[0], args[1], force)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return cmd
}

// export writes a checkpoint and gives the number of bytes.
func (a *app) export(ctx context.Context, c *client.Client, id string, w io.Writer) (int64, error) {
	p := a.progress("Exporting " + id)
	defer p.end()
	content, most, err := c.ExportCheckpoint(ctx, id)
	if err != nil {
		return 0, err
	}
	defer content.Close()
	in := &metered{r: content, total: most, progress: p.countToMost("Exporting " + id)}
	_, err = io.Copy(w, in)
	if ctx.Err() != nil {
		return in.done, ctx.Err()
	}
	if broken := in.failure(); broken != nil {
		return in.done, fault.Wrap(fault.Unavailable, broken, "the export broke off after %s", size(in.done)).WithHint("the server's log may say why")
	}
	return in.done, err
}

// exportFile writes a checkpoint beside the file, and then in its place.
func (a *app) exportFile(ctx context.Context, c *client.Client, id, file string, force bool) error {
	target, err := exportTarget(file, force)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+".*") // for its owner's eyes only
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err // without the name that it has for a moment
		}
		return fmt.Errorf("%s cannot be written: %w", file, err)
	}
	defer os.Remove(tmp.Name()) // gone from there when all went well
	n, err := a.export(ctx, c, id, tmp)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		target, err = exportTarget(file, force) // it may have taken an hour
	}
	if err == nil {
		err = durable.Rename(tmp.Name(), target)
	}
	if err != nil {
		return err
	}
	return a.answer(struct {
		ID    string `json:"id"`
		File  string `json:"file"`
		Bytes int64  `json:"bytes"`
	}{id, file, n}, func() error { return a.say("Checkpoint %s exported to %s (%s)", id, file, size(n)) })
}

// exportTarget gives the path to put an export at: the file's own, or what it
// links to. Only a regular file is replaced, and only with force.
func exportTarget(file string, force bool) (string, error) {
	st, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return file, nil
	case err != nil:
		return "", err
	case !st.Mode().IsRegular():
		return "", usage("to write into it, use - and let the shell redirect", "%s is not a regular file", file)
	case !force:
		return "", usage("choose another name, or add --force", "%s exists", file)
	}
	return filepath.EvalSymlinks(file)
}

// metered shows how far the reading of r has come, and keeps what it failed with.
type metered struct {
	r           io.Reader
	done, total int64 // bytes
	progress    func(done, total int64)

	mu  sync.Mutex
	err error // guarded by mu
}

// Read implements io.Reader.
func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.done += int64(n)
	m.progress(m.done, m.total)
	if err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.err = err
	}
	return n, err
}

// failure is what reading has failed with so far. Any goroutine may ask.
func (m *metered) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(m.err, io.EOF) {
		return nil
	}
	return m.err
}

// read tells whether all of it was read. Any goroutine may ask.
func (m *metered) read() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Is(m.err, io.EOF)
}
