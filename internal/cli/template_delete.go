// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newTemplateDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete <name>", Aliases: []string{"rm"}, Short: "Delete a template that nothing uses", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				if err := c.DeleteTemplate(ctx, args[0]); err != nil && !client.IsNotFound(err) {
					return err
				}
				return a.answer(map[string]string{"name": args[0], "status": "deleted"}, func() error {
					return a.say("Template %s deleted.", args[0])
				})
			})
		},
	}
}
