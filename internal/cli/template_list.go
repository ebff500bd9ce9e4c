// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newTemplateList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List templates", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, a.templateList)
		},
	}
}

func (a *app) templateList(ctx context.Context, c *client.Client) error {
	templates, err := c.ListTemplates(ctx)
	if err != nil {
		return err
	}
	return a.answer(notNil(templates), func() error {
		if len(templates) == 0 {
			return a.say("No templates found.")
		}
		var rows [][]string
		for _, t := range templates {
			rows = append(rows, []string{
				t.Name, t.Status, first(t.CheckpointID, "-"),
				timestamp(t.LastUsedAt, "-"), timestamp(t.CreatedAt, "-"),
			})
		}
		return writeTable(a.out, []string{"NAME", "STATUS", "CHECKPOINT", "LAST USED", "CREATED"}, rows)
	})
}
