// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/node"
)

func keyCommand() *cobra.Command {
	var s node.Settings
	cmd := &cobra.Command{
		Use: "key", Short: "API keys of this node (as root; works on the data directory)",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	s.BindDataDir(cmd.PersistentFlags())
	cmd.PersistentFlags().StringVar(&s.Database, "database", "", "metadata: a SQLite file or postgres://…; default <data-dir>/meta.db (env OC_DATABASE)")
	cmd.AddCommand(keyCreate(&s), keyList(&s), keyRevoke(&s))
	return cmd
}

// withMeta runs f on the node's metadata.
func withMeta(cmd *cobra.Command, s *node.Settings, f func(db *meta.DB) error) error {
	if err := s.Complete(cmd.Flags(), os.LookupEnv); err != nil {
		return err
	}
	db, err := node.OpenMeta(cmd.Context(), *s)
	if err != nil {
		return err
	}
	defer db.Close()
	return f(db)
}

type keyJSON struct {
	ID        string     `json:"id"`
	OrgID     string     `json:"orgId"`
	Org       string     `json:"org"` // its name, which --org takes
	Name      string     `json:"name"`
	Key       string     `json:"key,omitempty"` // only once
	KeyPrefix string     `json:"keyPrefix"`
	CreatedAt time.Time  `json:"createdAt"`
	RevokedAt *time.Time `json:"revokedAt,omitempty"`
}

func toJSON(k meta.Key, org, plain string) keyJSON {
	return keyJSON{ID: k.ID, OrgID: k.OrgID, Org: org, Name: k.Name, Key: plain, KeyPrefix: k.Prefix, CreatedAt: k.CreatedAt, RevokedAt: k.RevokedAt}
}

func keyCreate(s *node.Settings) *cobra.Command {
	var org, name string
	cmd := &cobra.Command{
		Use: "create", Short: "Make a key and print it, once; the first key of an org makes the org", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withMeta(cmd, s, func(db *meta.DB) error {
				plain, k, err := db.CreateKey(cmd.Context(), org, name)
				if err != nil {
					return err
				}
				if wantsJSON(cmd) {
					return printJSON(cmd, toJSON(k, org, plain))
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s\n", plain)
				fmt.Fprintf(cmd.ErrOrStderr(), "Key %s of org %s; it is not shown again.\n", k.ID, org)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&org, "org", node.DefaultOrg, "the org that the key belongs to")
	cmd.Flags().StringVar(&name, "name", "cli", "what the key is for")
	return cmd
}

func keyList(s *node.Settings) *cobra.Command {
	var org string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withMeta(cmd, s, func(db *meta.DB) error {
				keys, err := db.Keys(cmd.Context(), org)
				if err != nil {
					return err
				}
				names, err := orgNames(cmd.Context(), db)
				if err != nil {
					return err
				}
				if wantsJSON(cmd) {
					out := make([]keyJSON, len(keys))
					for i, k := range keys {
						out[i] = toJSON(k, names[k.OrgID], "")
					}
					return printJSON(cmd, out)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tORG\tNAME\tPREFIX\tCREATED\tREVOKED")
				for _, k := range keys {
					revoked := "-"
					if k.RevokedAt != nil {
						revoked = k.RevokedAt.UTC().Format(time.RFC3339)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, names[k.OrgID], k.Name, k.Prefix, k.CreatedAt.UTC().Format(time.RFC3339), revoked)
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&org, "org", "", "only of this org")
	return cmd
}

// orgNames gives the names of orgs by their ids.
func orgNames(ctx context.Context, db *meta.DB) (map[string]string, error) {
	orgs, err := db.Orgs(ctx)
	names := make(map[string]string, len(orgs))
	for _, o := range orgs {
		names[o.ID] = o.Name
	}
	return names, err
}

func keyRevoke(s *node.Settings) *cobra.Command {
	return &cobra.Command{
		Use: "revoke KEY-ID", Short: "Make a key invalid at once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withMeta(cmd, s, func(db *meta.DB) error {
				if err := db.RevokeKey(cmd.Context(), args[0]); err != nil {
					return err
				}
				if wantsJSON(cmd) {
					return printJSON(cmd, map[string]string{"id": args[0], "status": "revoked"})
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Key %s revoked.\n", args[0])
				return nil
			})
		},
	}
}
