// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

// newSandboxGroup holds the sandbox commands a second time, under their long
// names.
func (a *app) newSandboxGroup() *cobra.Command {
	list := a.newList()
	list.Use, list.Aliases = "list", []string{"ls"}
	return group(&cobra.Command{Use: "sandbox", Short: "Manage sandboxes"},
		a.newCreate(), list, a.newGet(), a.newKill(), a.newSetTimeout())
}

// sandboxID gives the id of a sandbox, whichever field the server filled.
func sandboxID(sb client.Sandbox) string { return first(sb.SandboxID, sb.ID) }

// sandboxAnswer is what --json prints for calls that answer nothing.
type sandboxAnswer struct {
	ID        string `json:"id"`
	SandboxID string `json:"sandboxID"`
	Status    string `json:"status,omitempty"`
	Timeout   *int   `json:"timeout,omitempty"`
}
