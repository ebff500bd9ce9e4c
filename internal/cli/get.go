// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newGet() *cobra.Command {
	return &cobra.Command{
		Use: "get <sandbox>", Short: "Show a sandbox", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error { return a.get(ctx, c, args[0]) })
		},
	}
}

func (a *app) get(ctx context.Context, c *client.Client, id string) error {
	sb, err := c.GetSandbox(ctx, id)
	if err != nil {
		return err
	}
	return a.answer(sb, func() error {
		err := a.say("ID:        %s\nTemplate:  %s\nStatus:    %s\nCPU:       %d\nMemory:    %dMB\nStarted:   %s\nEnds:      %s",
			sandboxID(sb), first(sb.TemplateID, sb.Template), sb.Status, sb.CPUCount, sb.MemoryMB,
			timestamp(sb.StartedAt, "-"), timestamp(sb.EndAt, "never"))
		if err == nil && sb.Name != "" {
			err = a.say("Name:      %s", sb.Name)
		}
		if err == nil && sb.Reason != "" {
			err = a.say("Reason:    %s", sb.Reason)
		}
		if err == nil && sb.FromCheckpointID != "" {
			err = a.say("From:      %s", sb.FromCheckpointID)
		}
		return err
	})
}
