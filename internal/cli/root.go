// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
	f.String("sessions-api-url", "", "accepted for compatibility; oc has no service for agents' sessions")

	inGroup(root, "sandboxes", "Sandboxes:",
		a.newCreate(), a.newList(), a.newGet(), a.newKill(), a.newSetTimeout(), a.newSandboxGroup())
	inGroup(root, "use", "In a sandbox:", a.newExec(), a.newShell(), a.newPush(), a.newPull())
	inGroup(root, "checkpoints", "Checkpoints:", a.newCheckpointGroup(), a.newFork())
	inGroup(root, "store", "The store:", a.newStoreGroup())
	inGroup(root, "templates", "Templates:", a.newTemplateGroup())
	checkArgs(root)
	inGroup(root, "server", "This machine's server:", extra...)
	inGroup(root, "client", "Client:", a.newConfigGroup(), a.newVersion())
	root.SetHelpCommandGroupID("client")
	root.SetCompletionCommandGroupID("client")
	return root
}

// checkArgs refuses, in cmd and all below it, an id or a name that is empty,
// mostly an unset variable of a script, which to the server would be another
// route and to a delete something that is gone; and what is not UTF-8, which
// would arrive as something else.
func checkArgs(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		checkArgs(sub)
	}
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return err
		}
		words := strings.Fields(cmd.Use)[1:]
		for i, arg := range args {
			word := words[min(i, len(words)-1)]
			switch word {
			case "<local>", "<file>": // of this machine
				continue
			case "<sandbox>", "[sandbox]", "<checkpoint>", "<session>", "<name>":
				if arg == "" {
					return usage("", "the argument %s is empty", word)
				}
			}
			if !utf8.ValidString(arg) {
				return usage("", "the argument %q is not valid UTF-8", arg)
			}
		}
		return checkFlags(cmd)
	}
}

// checkFlags refuses values that are not UTF-8.
func checkFlags(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if !utf8.ValidString(f.Value.String()) {
			err = usage("", "the value of --%s is not valid UTF-8", f.Name)
		}
	})
	return err
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
