// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) newExecAttach() *cobra.Command {
	return &cobra.Command{
		Use: "attach <sandbox> <session>", Short: "Follow a session: what it has printed, then what it prints",
		Long: `Follow a session: what it has printed, then what it prints. Input is forwarded;
its end is not, so that attaching without input does not end the session's.
Signals are as in exec, and so is the exit code.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			input, err := newInput(a.in, false, false)
			if err != nil {
				return err
			}
			defer input.end()
			f := &follower{
				app: a, client: c, sandbox: args[0], session: args[1],
				stdout: a.out, stderr: a.err, input: input,
			}
			if a.flags.json {
				return a.collect(cmd.Context(), f)
			}
			code, err := f.run(cmd.Context())
			if err != nil && !f.patient {
				return fmt.Errorf("attach failed: %w", err)
			}
			return exitWith(code, err)
		},
	}
}
