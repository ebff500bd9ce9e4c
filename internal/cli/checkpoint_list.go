// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointList() *cobra.Command {
	var wide bool
	cmd := &cobra.Command{
		Use: "list <sandbox>", Aliases: []string{"ls"}, Short: "List a sandbox's checkpoints", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				return a.checkpointList(ctx, c, args[0], wide)
			})
		},
	}
	cmd.Flags().BoolVar(&wide, "wide", false, "also kind, parent, what each added to the store, and what is special about it")
	return cmd
}

func (a *app) checkpointList(ctx context.Context, c *client.Client, sandbox string, wide bool) error {
	checkpoints, err := c.ListCheckpoints(ctx, sandbox)
	if err != nil {
		return err
	}
	return a.answer(notNil(checkpoints), func() error {
		if len(checkpoints) == 0 {
			return a.say("No checkpoints found.")
		}
		header := []string{"ID", "NAME", "STATUS", "SIZE", "CREATED"}
		if wide {
			header = append(header, "KIND", "PARENT", "ADDED", "NOTE")
		}
		var rows [][]string
		for _, cp := range checkpoints {
			row := []string{cp.ID, cp.Name, shownStatus(cp), megabytes(cp.SizeBytes), timestamp(cp.CreatedAt, "-")}
			if wide {
				row = append(row, cp.Kind, first(cp.ParentID, "-"), megabytes(cp.AddedBytes), note(cp))
			}
			rows = append(rows, row)
		}
		return writeTable(a.out, header, rows)
	})
}

// note is what is special about a checkpoint.
func note(cp client.Checkpoint) string {
	if cp.Unverified {
		return "unverified"
	}
	return "-"
}

// statusDamaged is shown for a checkpoint that was ready and cannot be read.
const statusDamaged = "damaged"

// shownStatus is a checkpoint's status as people see it.
func shownStatus(cp client.Checkpoint) string {
	if cp.Damaged {
		return statusDamaged
	}
	return cp.Status
}
