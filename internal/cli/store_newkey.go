// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) newStoreKey() *cobra.Command {
	return &cobra.Command{
		Use: "new-key", Short: "Print a new line for the file that oc serve --store-keys names", Args: cobra.NoArgs,
		Long: `Print a new line for the key file that oc serve --store-keys names. The first line
seals, all of them open: to change keys, put a new line in front and keep the
others for as long as there are checkpoints that they have sealed. Without its key a
checkpoint is lost.

  (umask 077; oc store new-key > /etc/opencomputer/store.keys)`,
		RunE: func(*cobra.Command, []string) error {
			if a.newKey == nil {
				return usage("", "this program makes no keys")
			}
			line := strings.TrimSuffix(a.newKey(), "\n")
			return a.answer(map[string]string{"line": line}, func() error { return a.say("%s", line) })
		},
	}
}
