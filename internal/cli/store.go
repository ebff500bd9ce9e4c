// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/http"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newStoreGroup() *cobra.Command {
	return group(&cobra.Command{
		Use: "store", Short: "Look after the server's store of checkpoints, whoever owns them",
	}, a.newStoreStats(), a.newStoreCheck(), a.newStoreRepair(), a.newStoreGC(), a.newStoreKey())
}

// problems prints what is wrong in the store.
func (a *app) problems(found []client.StoreProblem) error {
	if len(found) == 0 {
		return a.say("No problems found.")
	}
	var rows [][]string
	for _, p := range found {
		what := p.What
		if p.Harmless {
			what += " (harmless)"
		}
		rows = append(rows, []string{first(p.Checkpoint, p.Object, "-"), p.Key, what})
	}
	return writeTable(a.out, []string{"CHECKPOINT", "KEY", "PROBLEM"}, rows)
}

// harm makes an error of problems that are not harmless: a checkpoint cannot be
// used.
func harm(found []client.StoreProblem, hint string) error {
	n := 0
	for _, p := range found {
		if !p.Harmless {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return &client.Error{
		Status: http.StatusInternalServerError, Code: client.CodeInternal, Hint: hint,
		Message: "checkpoints are damaged: " + plural(n, "problem"),
	}
}

// plural says how many there are.
func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
