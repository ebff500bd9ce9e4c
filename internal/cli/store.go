// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newStoreGroup() *cobra.Command {
	return group(&cobra.Command{
		Use: "store", Short: "Look after the server's store of checkpoints, whoever owns them",
	}, a.newStoreStats(), a.newStoreCheck(), a.newStoreRepair(), a.newStoreGC(), a.newStoreKey())
}

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

func (a *app) newStoreCheck() *cobra.Command {
	var req client.StoreCheckRequest
	cmd := &cobra.Command{
		Use: "check", Short: "Look for what is wrong in the store", Args: cobra.NoArgs,
		Long: `Look for what is wrong in the store: objects that are missing, cut short or
unreadable, and with --read-data any byte that is not as it was written. Nothing
is changed. It exits with 5 if a checkpoint is damaged.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error { return a.storeCheck(ctx, c, req) })
		},
	}
	cmd.Flags().BoolVar(&req.ReadData, "read-data", false, "read every byte, not only what says where it is")
	return cmd
}

func (a *app) storeCheck(ctx context.Context, c *client.Client, req client.StoreCheckRequest) error {
	p := a.progress("Checking")
	defer p.end()
	r, err := c.CheckStore(ctx, req, p.count("Checking"))
	p.end()
	if err != nil {
		return err
	}
	r.Problems = notNil(r.Problems)
	err = a.answer(r, func() error {
		if err := a.say("%s in %s, %s", plural(r.Checkpoints, "checkpoint"), plural(r.Packs, "object"), size(r.Bytes)); err != nil {
			return err
		}
		if r.Leftovers > 0 {
			if err := a.say("%s, %s, that no checkpoint needs: oc store gc frees them", plural(r.Leftovers, "object"), size(r.LeftBytes)); err != nil {
				return err
			}
		}
		return a.problems(r.Problems)
	})
	if err != nil {
		return err
	}
	return harm(r.Problems, "oc store repair mends what can be mended; oc store check --help says more")
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

// plural says how many there are.
func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
