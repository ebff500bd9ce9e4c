// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointRestore() *cobra.Command {
	var req client.RestoreRequest
	cmd := &cobra.Command{
		Use: "restore <sandbox> <checkpoint>", Short: "Put a sandbox back to a checkpoint, its own or another", Args: cobra.ExactArgs(2),
		Long: `Put a sandbox back to a checkpoint, its own or another of the org. Its present
state is kept as an automatic checkpoint (before-restore-…, the newest 3), so that
the restore can be undone.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				p := a.progress("Restoring " + args[0])
				defer p.end()
				res, err := c.RestoreCheckpoint(ctx, args[0], args[1], req)
				p.end()
				if err != nil {
					return goesOn(err, "it may have been done: then oc checkpoint list %s shows a new before-restore-…", args[0])
				}
				return a.answer(res, func() error {
					if res.Note != "" {
						a.warn("%s", res.Note)
					}
					return a.say("Sandbox %s restored to checkpoint %s", args[0], args[1])
				})
			})
		},
	}
	cmd.Flags().BoolVar(&req.NoSave, "no-save", false, "lose the present state")
	return cmd
}
