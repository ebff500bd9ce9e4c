// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

// defaultTimeout is the rolling idle timeout, in seconds, that create, spawn and
// fork ask for unless told otherwise. The API's own default is never.
const defaultTimeout = 300

// timeoutHelp describes it.
const timeoutHelp = "stop it after this many idle seconds, keeping a checkpoint; 0 = never"

func (a *app) newCreate() *cobra.Command {
	var req client.CreateSandboxRequest
	var envs, metadata []string
	cmd := &cobra.Command{
		Use: "create", Short: "Create a sandbox", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Envs, err = pairs("env", envs); err != nil {
				return err
			}
			if req.Metadata, err = pairs("metadata", metadata); err != nil {
				return err
			}
			if err := checkTimeout(req.Timeout); err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error { return a.create(ctx, c, req) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.TemplateID, "template", "base", "what it starts from")
	f.IntVar(&req.Timeout, "timeout", defaultTimeout, timeoutHelp)
	f.IntVar(&req.CPUCount, "cpu", 0, "number of CPUs; 0 = the server's default")
	f.IntVar(&req.MemoryMB, "memory", 0, "memory in MB; 0 = the server's default")
	f.IntVar(&req.DiskMB, "disk", 0, "limit in MB of what it may write; 0 = the server's default")
	f.StringArrayVar(&envs, "env", nil, "environment of its processes, `K=V` (repeat, or separate by commas)")
	f.StringArrayVar(&metadata, "metadata", nil, "label, `K=V` (repeat, or separate by commas)")
	f.StringVar(&req.Name, "name", "", "a name to show")
	return cmd
}

func (a *app) create(ctx context.Context, c *client.Client, req client.CreateSandboxRequest) error {
	p := a.progress("Creating sandbox")
	defer p.end()
	sb, err := c.CreateSandbox(ctx, req, p.step)
	p.end()
	if err != nil {
		return err
	}
	return a.answer(sb, func() error {
		return a.say("Created sandbox %s (status: %s)", sandboxID(sb), sb.Status)
	})
}

// checkTimeout refuses a timeout that cannot be.
func checkTimeout(seconds int) error {
	if seconds < 0 {
		return usage("use 0 for never", "invalid timeout: %d", seconds)
	}
	return nil
}
