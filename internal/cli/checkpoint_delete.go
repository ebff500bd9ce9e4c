// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete <sandbox> <checkpoint>", Aliases: []string{"rm"},
		Short: "Delete a checkpoint; sandboxes made of it stay", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				if err := c.DeleteCheckpoint(ctx, args[0], args[1]); err != nil && !client.IsNotFound(err) {
					return err
				}
				return a.answer(map[string]string{"id": args[1], "status": "deleted"}, func() error {
					return a.say("Checkpoint %s deleted.", args[1])
				})
			})
		},
	}
}
