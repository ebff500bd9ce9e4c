// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/opencomputer/oc/client"
	"github.com/spf13/cobra"
)

func (a *app) newCheckpointTree() *cobra.Command {
	return &cobra.Command{
		Use: "tree [sandbox]", Short: "Draw what descends from what", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				var sandbox string
				if len(args) > 0 {
					sandbox = args[0]
				}
				nodes, err := c.CheckpointTree(ctx, sandbox)
				if err != nil {
					return err
				}
				return a.answer(notNil(nodes), func() error {
					if len(nodes) == 0 {
						return a.say("No checkpoints found.")
					}
					return drawTree(a.out, nodes)
				})
			})
		},
	}
}

// drawTree draws the nodes below their parents. A node whose parent is not among
// them begins a tree of its own.
func drawTree(w io.Writer, nodes []client.TreeNode) error {
	known := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		known[n.ID] = true
	}
	t := treeDrawer{children: make(map[string][]client.TreeNode), drawn: make(map[string]bool, len(nodes))}
	var roots []client.TreeNode
	for _, n := range nodes {
		if known[n.ParentID] {
			t.children[n.ParentID] = append(t.children[n.ParentID], n)
		} else {
			roots = append(roots, n)
		}
	}
	for _, n := range roots {
		t.draw(n, "", "")
	}
	for _, n := range nodes { // of a circle, which no server should send, each is still shown
		if !t.drawn[n.ID] {
			t.draw(n, "", "")
		}
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

// treeDrawer collects the lines of a tree.
type treeDrawer struct {
	children map[string][]client.TreeNode
	drawn    map[string]bool
	b        strings.Builder
}

// draw adds a node and what is below it. lead begins the node's own line, below
// those of its children.
func (t *treeDrawer) draw(n client.TreeNode, lead, below string) {
	t.drawn[n.ID] = true
	label := n.ID
	if n.Name != "" {
		label += "  " + n.Name
	}
	t.b.WriteString(lead + printable(fmt.Sprintf("%s  (%s)", label, n.Status)) + "\n")
	var rest []client.TreeNode
	for _, child := range t.children[n.ID] {
		if !t.drawn[child.ID] {
			rest = append(rest, child)
		}
	}
	for i, child := range rest {
		if i < len(rest)-1 {
			t.draw(child, below+"├─ ", below+"│  ")
		} else {
			t.draw(child, below+"└─ ", below+"   ")
		}
	}
}
