// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newStoreStats() *cobra.Command {
	return &cobra.Command{
		Use: "stats", Short: "Show where checkpoints are and how much they take", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, a.storeStats)
		},
	}
}

func (a *app) storeStats(ctx context.Context, c *client.Client) error {
	s, err := c.StoreStats(ctx)
	if err != nil {
		return err
	}
	return a.answer(s, func() error {
		ratio, cache, sealed := "-", "none", "no"
		if s.StoredBytes > 0 {
			ratio = fmt.Sprintf("%.1f", float64(s.LogicalBytes)/float64(s.StoredBytes))
		}
		if s.CacheLimit > 0 {
			cache = size(s.CacheBytes) + " of " + size(s.CacheLimit)
		}
		if s.Sealed {
			sealed = "yes"
		}
		return a.say("Where:        %s\nCheckpoints:  %d\nContent:      %s\nStored:       %s\nRatio:        %s\nCache:        %s\nSealed:       %s",
			s.Where, s.Checkpoints, size(s.LogicalBytes), size(s.StoredBytes), ratio, cache, sealed)
	})
}
