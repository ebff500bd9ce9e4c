// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

// lastSignal is the highest signal number of Linux.
const lastSignal = 64

func (a *app) newExecKill() *cobra.Command {
	var signal int
	cmd := &cobra.Command{
		Use: "kill <sandbox> <session>", Short: "Send a signal to a session's processes", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if signal < 1 || signal > lastSignal {
				return usage("give a number such as 15", "invalid signal: %d", signal)
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				res, err := c.KillExec(ctx, args[0], args[1], signal)
				if err != nil {
					return err
				}
				out := map[string]any{"sessionID": args[1], "signal": signal}
				if res.Ended {
					out["ended"] = true
				}
				return a.answer(out, func() error {
					if res.Ended {
						return a.say("Session %s has ended already", args[1])
					}
					return a.say("Session %s killed", args[1])
				})
			})
		},
	}
	cmd.Flags().IntVar(&signal, "signal", 9, "number of the signal")
	return cmd
}
