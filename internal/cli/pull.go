// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"path"
	"path/filepath"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/cli/archive"
	"github.com/spf13/cobra"
)

func (a *app) newPull() *cobra.Command {
	return &cobra.Command{
		Use: "pull <sandbox> <remote> <local>", Short: "Copy a file or directory out of a sandbox",
		Long: "Copy a file or directory out of a sandbox.\n\n" + copyHelp + ` Links that point
out of the copy are left out, with a warning.`, Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				return a.pull(ctx, c, args[0], args[1], args[2])
			})
		},
	}
}

func (a *app) pull(ctx context.Context, c *client.Client, sandbox, remote, local string) error {
	if remote == "" || local == "" {
		return usage(`use "." for the home or the present directory`, "a path is empty")
	}
	if intoDirectory(local) {
		local = filepath.Join(local, path.Base(path.Join("/", remote)))
	}
	p := a.progress("Copying " + remote)
	defer p.end()
	content, err := c.PullTar(ctx, sandbox, remote)
	if err != nil {
		return err
	}
	defer content.Close()
	stats, err := archive.Unpack(ctx, content, local, p.notices())
	p.end()
	if err != nil {
		return err
	}
	return a.copied(stats, func() error {
		return a.say("Pulled %s:%s to %s (%s)", sandbox, remote, local, amount(stats))
	})
}
