// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newFork() *cobra.Command {
	var req client.SpawnRequest
	cmd := &cobra.Command{
		Use: "fork <sandbox>", Short: "Checkpoint a running sandbox and make new ones that go on from there", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkSpawn(req); err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				p := a.progress("Forking " + args[0])
				defer p.end()
				res, err := c.ForkSandbox(ctx, args[0], req)
				p.end()
				if err != nil {
					return err
				}
				return a.forked(res)
			})
		},
	}
	spawnFlags(cmd.Flags(), &req)
	return cmd
}

// forked answers a fork.
func (a *app) forked(res client.ForkResult) error {
	res.Sandboxes = notNil(res.Sandboxes)
	return a.answer(res, func() error {
		cp := res.Checkpoint
		if err := a.say("Checkpoint created: %s (status: %s)", cp.ID, cp.Status); err != nil {
			return err
		}
		return a.sayCreated(res.Sandboxes)
	})
}
