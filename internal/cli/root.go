// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// rootText says what oc is.
const rootText = `Run sandboxes, checkpoint them while they run, restore and fork them.

Exit codes: 0 success; 1 wrong usage or a failure on this side; 3 the server
refused (HTTP 4xx); 4 conflict (HTTP 409); 5 the server failed (HTTP 5xx);
exec gives the remote command's code.`

// root builds the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "oc", Short: "Sandboxes with checkpoints", Long: rootText,
		Version:       a.version,
		SilenceUsage:  true,
		SilenceErrors: true,
		// A suggestion would make the error several lines long.
		DisableSuggestions: true,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.flags.apiKey, "api-key", "", "API key (environment: "+envAPIKey+")")
	f.StringVar(&a.flags.apiURL, "api-url", "", "URL of the server (environment: "+envAPIURL+")")
	f.BoolVar(&a.flags.json, "json", false, "print JSON")
	f.Bool("no-color", false, "accepted for compatibility; oc prints no colours")

	root.AddCommand(
		a.newSandboxGroup(),
		a.newCreate(), a.newList(), a.newGet(), a.newKill(), a.newSetTimeout(),
		a.newExec(), a.newShell(), a.newPush(), a.newPull(),
		a.newCheckpointGroup(), a.newFork(),
		a.newTemplateGroup(),
		a.newConfigGroup(),
		a.newVersion(),
	)
	return root
}

// group completes a command that only holds others: alone it prints its help,
// and an unknown subcommand is an error.
func group(cmd *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.DisableFlagsInUseLine = true
	cmd.AddCommand(subs...)
	return cmd
}
