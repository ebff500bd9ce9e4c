// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"strconv"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newSetTimeout() *cobra.Command {
	return &cobra.Command{
		Use: "set-timeout <sandbox> <seconds>", Short: "Change a sandbox's idle timeout; 0 = never", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			seconds, err := strconv.Atoi(args[1])
			if err != nil || seconds < 0 {
				return usage("give a number of seconds, 0 for never", "invalid timeout: %s", args[1])
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				if err := c.SetTimeout(ctx, args[0], seconds); err != nil {
					return err
				}
				return a.answer(sandboxAnswer{ID: args[0], SandboxID: args[0], Timeout: &seconds}, func() error {
					return a.say("Timeout updated to %ds for sandbox %s", seconds, args[0])
				})
			})
		},
	}
}
