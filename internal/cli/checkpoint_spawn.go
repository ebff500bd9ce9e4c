// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) newCheckpointSpawn() *cobra.Command {
	var req client.SpawnRequest
	cmd := &cobra.Command{
		Use: "spawn <checkpoint>", Short: "Make new sandboxes that go on from a checkpoint", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkSpawn(req); err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				p := a.progress("Spawning from " + args[0])
				defer p.end()
				res, err := c.SpawnCheckpointWatched(ctx, args[0], req, p.count("Fetching what "+args[0]+" runs on"))
				p.end()
				if err != nil {
					return err
				}
				return a.spawned(res, req.Count)
			})
		},
	}
	spawnFlags(cmd.Flags(), &req)
	return cmd
}

// spawnFlags are the flags of spawn and fork.
func spawnFlags(f *pflag.FlagSet, req *client.SpawnRequest) {
	f.IntVar(&req.Timeout, "timeout", defaultTimeout, timeoutHelp)
	f.IntVarP(&req.Count, "count", "n", 1, "how many sandboxes")
	f.StringVar(&req.Name, "name", "", "a name to show; with several, -1, -2, … is added")
}

// checkSpawn refuses what cannot be.
func checkSpawn(req client.SpawnRequest) error {
	if req.Count < 1 {
		return usage("", "invalid count: %d", req.Count)
	}
	return checkTimeout(req.Timeout)
}

// spawned answers a spawn: with --json one sandbox, or a list if more than one
// was asked for.
func (a *app) spawned(res client.SpawnResult, count int) error {
	var shown any = res.All()[0]
	if count > 1 {
		shown = res.All()
	}
	return a.answer(shown, func() error { return a.sayCreated(res.All()) })
}

// sayCreated prints the sandboxes that a spawn or fork made.
func (a *app) sayCreated(sandboxes []client.Sandbox) error {
	for _, sb := range sandboxes {
		if err := a.say("Created sandbox %s from checkpoint (status: %s)", sandboxID(sb), sb.Status); err != nil {
			return err
		}
	}
	return nil
}
