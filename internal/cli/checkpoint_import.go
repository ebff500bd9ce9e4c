// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointImport() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "import <file>", Short: "Make a checkpoint of a file that oc checkpoint export wrote; - is standard input", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == standardStream {
				if _, tty := terminalFD(a.in); tty {
					return usage("give the name of a file, or a pipe", "standard input is a terminal")
				}
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				if args[0] == standardStream {
					return a.checkpointImport(ctx, c, name, a.in, 0)
				}
				return a.importFile(ctx, c, name, args[0])
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "its name (default: the one that it had)")
	return cmd
}

func (a *app) importFile(ctx context.Context, c *client.Client, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		return usage("give a file that oc checkpoint export wrote", "%s is a directory", file)
	}
	return a.checkpointImport(ctx, c, name, f, st.Size())
}

// checkpointImport makes a checkpoint of what r reads; a total of 0 bytes is not
// known.
func (a *app) checkpointImport(ctx context.Context, c *client.Client, name string, r io.Reader, total int64) error {
	p := a.progress("Importing")
	defer p.end()
	in := &metered{r: r, total: total, progress: p.count("Importing")}
	storing := sync.OnceValue(func() func(done, total int64) { return p.count("Storing") })
	cp, err := c.ImportCheckpoint(ctx, name, in, func(done, total int64) {
		if in.read() { // before that it tells of what we know better
			storing()(done, total)
		}
	})
	p.end()
	if rerr := in.failure(); err != nil && rerr != nil {
		return fmt.Errorf("reading the file: %w", rerr)
	}
	if err != nil {
		return err
	}
	return a.answer(cp, func() error {
		return a.say("Checkpoint imported: %s (status: %s)\nName: %s\nSandbox: %s", cp.ID, shownStatus(cp), cp.Name, first(cp.SandboxID, "-"))
	})
}
