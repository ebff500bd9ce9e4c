// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

// How often the state of a checkpoint is asked for when the server answers before
// it is ready.
const (
	pollFirst = 200 * time.Millisecond
	pollMost  = 2 * time.Second
)

func (a *app) newCheckpointCreate() *cobra.Command {
	var req client.CreateCheckpointRequest
	var retention client.RetentionPolicy
	var promote bool
	cmd := &cobra.Command{
		Use: "create <sandbox>", Short: "Checkpoint a running sandbox, which goes on running", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("promote-to-full") {
				req.PromoteToFull = &promote
			}
			if err := checkCheckpoint(req, retention); err != nil {
				return err
			}
			if retention.Mode != retainAll {
				req.RetentionPolicy = &retention
			}
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				return a.checkpointCreate(ctx, c, args[0], req)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Name, "name", "", "its name, unique in the sandbox (required)")
	f.StringVar(&req.Kind, "kind", kindFull, "full or disk_only")
	f.StringVar(&retention.Mode, "retention-policy", retainAll, "none, or delete_oldest when there are more than the maximum")
	f.IntVar(&retention.MaxCount, "retention-max-count", 0, "how many to keep; 0 = the server's limit")
	f.BoolVar(&req.NoWait, "no-wait", false, "do not wait until it is ready")
	f.BoolVar(&promote, "promote-to-full", false, "make a full checkpoint of a disk_only one, in the background")
	_ = f.MarkHidden("promote-to-full") // fails, as the next one, only for a flag that does not exist
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

// Words of the API.
const (
	kindFull     = "full"
	kindDiskOnly = "disk_only"
	retainAll    = "none"
	retainNewest = "delete_oldest"
)

// checkCheckpoint refuses what the server would refuse, in the words of the CLI.
func checkCheckpoint(req client.CreateCheckpointRequest, retention client.RetentionPolicy) error {
	if req.Kind != kindFull && req.Kind != kindDiskOnly {
		return usage("", "unsupported checkpoint kind %q; expected full or disk_only", req.Kind)
	}
	if req.PromoteToFull != nil && *req.PromoteToFull && req.Kind != kindDiskOnly {
		return usage("", "--promote-to-full requires --kind disk_only")
	}
	if retention.Mode != retainAll && retention.Mode != retainNewest {
		return usage("", "unsupported retention policy %q; expected none or delete_oldest", retention.Mode)
	}
	if retention.Mode == retainAll && retention.MaxCount != 0 {
		return usage("", "--retention-max-count requires --retention-policy delete_oldest")
	}
	return nil
}

func (a *app) checkpointCreate(ctx context.Context, c *client.Client, sandbox string, req client.CreateCheckpointRequest) error {
	what := "Creating checkpoint " + req.Name
	p := a.progress(what)
	defer p.end()
	cp, err := c.CreateCheckpointWatched(ctx, sandbox, req, p.count(what))
	if err == nil && !req.NoWait {
		cp, err = awaitCheckpoint(ctx, c, cp)
	}
	p.end()
	if err != nil {
		return goesOn(err, "the server goes on with it: oc checkpoint list %s shows what it has become", sandbox)
	}
	return a.answer(cp, func() error {
		return a.say("Checkpoint created: %s (status: %s)\nName: %s", cp.ID, cp.Status, cp.Name)
	})
}

// awaitCheckpoint waits until a checkpoint is ready. One that failed is an error
// with its reason.
func awaitCheckpoint(ctx context.Context, c *client.Client, cp client.Checkpoint) (client.Checkpoint, error) {
	pause := pollFirst
	for cp.Status == client.CheckpointProcessing {
		if err := wait(ctx, pause); err != nil {
			return cp, err
		}
		pause = min(pause*2, pollMost)
		var err error
		if cp, err = c.GetCheckpoint(ctx, cp.ID); err != nil {
			return cp, err
		}
	}
	if cp.Status == client.CheckpointFailed {
		return cp, &client.Error{
			Status: http.StatusInternalServerError, Code: client.CodeInternal,
			Message: fmt.Sprintf("checkpoint %s failed: %s", cp.ID, first(cp.ErrorMsg, "no reason given")),
		}
	}
	return cp, nil
}

// wait lets a time pass, unless ctx ends first.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
