// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

func (a *app) newCheckpointGroup() *cobra.Command {
	return group(&cobra.Command{
		Use: "checkpoint", Aliases: []string{"cp"},
		Short: "Checkpoint sandboxes, restore and spawn them",
	}, a.newCheckpointCreate(), a.newCheckpointList(), a.newCheckpointRestore(),
		a.newCheckpointSpawn(), a.newCheckpointDelete(), a.newCheckpointTree(),
		a.newCheckpointVerify(), a.newCheckpointExport(), a.newCheckpointImport(), a.newCheckpointConvert())
}
