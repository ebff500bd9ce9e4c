// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newExecList() *cobra.Command {
	return &cobra.Command{
		Use: "list <sandbox>", Short: "List a sandbox's sessions", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error { return a.execList(ctx, c, args[0]) })
		},
	}
}

func (a *app) execList(ctx context.Context, c *client.Client, sandbox string) error {
	sessions, err := c.ListExec(ctx, sandbox)
	if err != nil {
		return err
	}
	return a.answer(notNil(sessions), func() error {
		if len(sessions) == 0 {
			return a.say("No active exec sessions.")
		}
		for _, s := range sessions {
			state := "running"
			if !s.Running && s.ExitCode != nil {
				state = fmt.Sprintf("exited (%d)", *s.ExitCode)
			} else if !s.Running {
				state = "exited"
			}
			line := strings.Join(append([]string{s.Command}, s.Args...), " ")
			if err := a.say("  %s  %s  %s  clients=%d", s.SessionID, state, line, s.AttachedClients); err != nil {
				return err
			}
		}
		return nil
	})
}
