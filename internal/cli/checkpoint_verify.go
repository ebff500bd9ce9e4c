// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify <checkpoint>", Short: "Read and check every byte of a checkpoint", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				p := a.progress("Verifying " + args[0])
				defer p.end()
				res, err := c.VerifyCheckpoint(ctx, args[0], p.count("Verifying "+args[0]))
				p.end()
				if err != nil {
					return err
				}
				return a.answer(res, func() error { return a.say("Checkpoint %s verified.", args[0]) })
			})
		},
	}
}
