// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

func (a *app) newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of oc", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.answer(map[string]string{"version": a.version}, func() error {
				return a.say("oc version %s", a.version)
			})
		},
	}
}
