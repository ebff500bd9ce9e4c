// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newStoreRepair() *cobra.Command {
	return &cobra.Command{
		Use: "repair", Short: "Mend what can be mended without a guess", Args: cobra.NoArgs,
		Long: `Mend what can be mended without a guess. A checkpoint whose data are gone is marked
damaged: it can be deleted, and not restored. It exits with 5 if a checkpoint is
damaged after it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, a.storeRepair)
		},
	}
}

func (a *app) storeRepair(ctx context.Context, c *client.Client) error {
	p := a.progress("Repairing")
	defer p.end()
	r, err := c.RepairStore(ctx, p.count("Repairing"))
	p.end()
	if err != nil {
		return err
	}
	r.Done, r.Remaining = notNil(r.Done), notNil(r.Remaining)
	err = a.answer(r, func() error {
		for _, line := range r.Done {
			if err := a.say("%s", line); err != nil {
				return err
			}
		}
		return a.problems(r.Remaining)
	})
	if err != nil {
		return err
	}
	return harm(r.Remaining, "delete the damaged checkpoints, or bring the store's objects back from a copy")
}
