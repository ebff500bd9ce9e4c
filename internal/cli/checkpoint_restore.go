// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointRestore() *cobra.Command {
	return &cobra.Command{
		Use: "restore <sandbox> <checkpoint>", Short: "Put a sandbox back to a checkpoint, its own or another", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				p := a.progress("Restoring " + args[0])
				defer p.end()
				res, err := c.RestoreCheckpoint(ctx, args[0], args[1])
				p.end()
				if err != nil {
					return err
				}
				return a.answer(res, func() error {
					return a.say("Sandbox %s restored to checkpoint %s", args[0], args[1])
				})
			})
		},
	}
}
