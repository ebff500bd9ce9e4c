// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newKill() *cobra.Command {
	return &cobra.Command{
		Use: "kill <sandbox>", Short: "End a sandbox for good; its checkpoints stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				if err := c.KillSandbox(ctx, args[0]); err != nil {
					return err
				}
				return a.answer(sandboxAnswer{ID: args[0], SandboxID: args[0], Status: client.StatusStopped}, func() error {
					return a.say("Sandbox %s killed.", args[0])
				})
			})
		},
	}
}
