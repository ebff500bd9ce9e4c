// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newList() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List sandboxes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error { return a.list(ctx, c, all) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "stopped ones too")
	return cmd
}

func (a *app) list(ctx context.Context, c *client.Client, all bool) error {
	sandboxes, err := c.ListSandboxes(ctx, all)
	if err != nil {
		return err
	}
	return a.answer(notNil(sandboxes), func() error {
		if len(sandboxes) == 0 {
			return a.say("No sandboxes found.")
		}
		var rows [][]string
		for _, sb := range sandboxes {
			rows = append(rows, []string{
				sandboxID(sb), first(sb.TemplateID, sb.Template), sb.Status,
				fmt.Sprint(sb.CPUCount), fmt.Sprintf("%dMB", sb.MemoryMB), age(sb.StartedAt),
			})
		}
		return writeTable(a.out, []string{"ID", "TEMPLATE", "STATUS", "CPU", "MEM", "AGE"}, rows)
	})
}

// age says how long ago a time was.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return max(time.Since(t), 0).Truncate(time.Second).String()
}

// notNil makes an empty list print as [].
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
