// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newStoreGC() *cobra.Command {
	var req client.StoreGCRequest
	cmd := &cobra.Command{
		Use: "gc", Short: "Free what no checkpoint needs, now; the server does it by itself too", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error { return a.storeGC(ctx, c, req) })
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "change nothing, say what would be freed")
	return cmd
}

func (a *app) storeGC(ctx context.Context, c *client.Client, req client.StoreGCRequest) error {
	p := a.progress("Collecting")
	defer p.end()
	r, err := c.CollectStore(ctx, req, p.count("Collecting"))
	p.end()
	if err != nil {
		return err
	}
	return a.answer(r, func() error {
		verb := "Freed"
		if req.DryRun {
			verb = "Would free"
		}
		var more []string
		if r.Checkpoints > 0 {
			more = append(more, "what was left of "+plural(r.Checkpoints, "checkpoint"))
		}
		if r.Expired > 0 {
			more = append(more, plural(r.Expired, "claim")+" of others that had expired")
		}
		line := fmt.Sprintf("%s %s in %s", verb, size(r.Bytes), plural(r.Packs, "object"))
		if err := a.say("%s", strings.Join(append([]string{line}, more...), ", ")); err != nil {
			return err
		}
		if r.Unknown > 0 {
			a.warn("%s in the store whose names are not the store's: left alone", plural(r.Unknown, "object"))
		}
		return nil
	})
}
