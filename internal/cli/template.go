// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newTemplateGroup() *cobra.Command {
	return group(&cobra.Command{
		Use: "template", Aliases: []string{"templates", "snapshot", "snapshots"},
		Short: "Manage what sandboxes start from",
	}, a.newTemplateBuild(), a.newTemplateImport(), a.newTemplateList(), a.newTemplateDelete())
}

// templateReady prints the template that a build or an import made.
func (a *app) templateReady(t client.Template) error {
	return a.answer(t, func() error {
		return a.say("Template %s %s (%s)", t.Name, t.Status, megabytes(t.SizeBytes))
	})
}

func (a *app) newTemplateBuild() *cobra.Command {
	return &cobra.Command{
		Use: "build <name>", Short: "Build a template that the server knows how to make, such as base", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				p := a.progress("Building template " + args[0])
				defer p.end()
				t, err := c.BuildTemplate(ctx, args[0], p.step)
				p.end()
				if err != nil {
					return err
				}
				return a.templateReady(t)
			})
		},
	}
}
