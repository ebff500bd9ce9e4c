// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointConvert() *cobra.Command {
	return &cobra.Command{
		Use: "convert <checkpoint>", Short: "Move a checkpoint of the first format into the page store", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				p := a.progress("Converting " + args[0])
				defer p.end()
				cp, err := c.ConvertCheckpoint(ctx, args[0], p.count("Converting "+args[0]))
				p.end()
				if err != nil {
					return err
				}
				return a.answer(cp, func() error {
					return a.say("Checkpoint %s is in the page store (%s, of which %s are new there).", cp.ID, size(cp.SizeBytes), size(cp.AddedBytes))
				})
			})
		},
	}
}
