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

// root builds the command tree, with the extra commands of the program.
func (a *app) root(extra ...*cobra.Command) *cobra.Command {
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

	inGroup(root, "sandboxes", "Sandboxes:",
		a.newCreate(), a.newList(), a.newGet(), a.newKill(), a.newSetTimeout(), a.newSandboxGroup())
	inGroup(root, "use", "In a sandbox:", a.newExec(), a.newShell(), a.newPush(), a.newPull())
	inGroup(root, "checkpoints", "Checkpoints:", a.newCheckpointGroup(), a.newFork())
	inGroup(root, "store", "The store:", a.newStoreGroup())
	inGroup(root, "templates", "Templates:", a.newTemplateGroup())
	inGroup(root, "server", "This machine's server:", extra...)
	inGroup(root, "client", "Client:", a.newConfigGroup(), a.newVersion())
	root.SetHelpCommandGroupID("client")
	root.SetCompletionCommandGroupID("client")
	return root
}

// inGroup adds commands under a title of the help.
func inGroup(root *cobra.Command, id, title string, cmds ...*cobra.Command) {
	if len(cmds) == 0 {
		return
	}
	root.AddGroup(&cobra.Group{ID: id, Title: title})
	for _, cmd := range cmds {
		cmd.GroupID = id
		root.AddCommand(cmd)
	}
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
