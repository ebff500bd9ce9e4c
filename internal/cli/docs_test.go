// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The part of docs/cli.md that is made of the command tree lies between these.
const (
	docBegin = "<!-- commands: made by OC_UPDATE_DOCS=1 go test ./internal/cli -run TestDocs -->\n"
	docEnd   = "<!-- end of commands -->\n"
)

// TestDocs holds docs/cli.md to the commands and flags that there are. With
// OC_UPDATE_DOCS=1 in the environment it writes them.
func TestDocs(t *testing.T) {
	t.Parallel()
	name := filepath.Join("..", "..", "docs", "cli.md")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), docBegin)
	_, after, ok2 := strings.Cut(rest, docEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no lines %q and %q", name, docBegin, docEnd)
	}
	want := before + docBegin + commandTables((&app{}).root()) + docEnd + after
	if want == string(data) {
		return
	}
	if os.Getenv("OC_UPDATE_DOCS") == "" {
		t.Fatalf("%s is not what the commands say: run OC_UPDATE_DOCS=1 go test ./internal/cli -run TestDocs", name)
	}
	if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// commandTables makes one table per group of commands.
func commandTables(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("\n### Flags of every command\n\n| flag | default | meaning |\n|---|---|---|\n")
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { b.WriteString(flagRow(f)) })
	for _, g := range root.Groups() {
		fmt.Fprintf(&b, "\n### %s\n\n| command | meaning | flags (default) |\n|---|---|---|\n", strings.TrimSuffix(g.Title, ":"))
		for _, cmd := range root.Commands() {
			if cmd.GroupID == g.ID {
				commandRows(&b, cmd)
			}
		}
	}
	b.WriteString("\n")
	return b.String()
}

// commandRows adds a command and those below it.
func commandRows(b *strings.Builder, cmd *cobra.Command) {
	var aliases, flags []string
	for _, a := range cmd.Aliases {
		aliases = append(aliases, "`"+a+"`")
	}
	meaning := cmd.Short
	if len(aliases) > 0 {
		meaning += " (also " + strings.Join(aliases, ", ") + ")"
	}
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		flag := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			flag = "`-" + f.Shorthand + "`, " + flag
		}
		if d := f.DefValue; d != "" && d != "[]" && d != "false" {
			flag += " (" + d + ")"
		}
		_, usage := pflag.UnquoteUsage(f)
		flags = append(flags, flag+" "+usage)
	})
	line := strings.TrimSuffix(cmd.UseLine(), " [flags]")
	fmt.Fprintf(b, "| `%s` | %s | %s |\n", escapeCell(line), escapeCell(meaning), escapeCell(strings.Join(flags, "<br>")))
	for _, sub := range cmd.Commands() {
		commandRows(b, sub)
	}
}

// flagRow is the row of a global flag.
func flagRow(f *pflag.Flag) string {
	return fmt.Sprintf("| `--%s` | %s | %s |\n", f.Name, f.DefValue, escapeCell(f.Usage))
}

// escapeCell keeps a bar from ending a cell.
func escapeCell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
