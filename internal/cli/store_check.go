// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

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
