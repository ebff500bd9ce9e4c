// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/node"
)

// unitPath is where systemd looks for an administrator's units.
const unitPath = "/etc/systemd/system/opencomputer.service"

// unit is the systemd unit of the server. Only the server's own process is
// stopped with it (KillMode=process): engines, the keeper and pagers live in
// other cgroups and outlive it. OOMPolicy=continue for the same reason: a
// process killed for memory must not take the server down.
func unit(binary, dataDir string) string {
	return fmt.Sprintf(`[Unit]
Description=OpenComputer sandboxes
After=network.target local-fs.target

[Service]
Type=exec
ExecStart=%s serve --data-dir %s
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
OOMPolicy=continue
LimitNOFILE=1048576
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`, quoteUnit(binary), quoteUnit(dataDir))
}

// quoteUnit quotes a word of a unit's command line (systemd.service(5),
// "Command lines"): quotes and backslashes escaped, '%' and '$' doubled.
func quoteUnit(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(s)
	return `"` + s + `"`
}

// installed is the path of oc. It gives its own as the name of this program, which
// it has put into memory.
func installed() (string, error) {
	if filepath.IsAbs(os.Args[0]) {
		return os.Args[0], nil
	}
	return os.Executable()
}

func installServiceCommand() *cobra.Command {
	var (
		s     node.Settings
		print bool
	)
	cmd := &cobra.Command{
		Use: "install-service", Short: "Write a systemd unit for the server (as root)",
		Long: `Write ` + unitPath + `, so that systemd starts the
server at boot and again when it ends. Sandboxes outlive it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.Complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			self, err := installed()
			if err != nil {
				return fmt.Errorf("finding our own binary: %w", err)
			}
			text := unit(self, s.DataDir)
			if print && wantsJSON(cmd) {
				return printJSON(cmd, map[string]string{"path": unitPath, "unit": text})
			}
			if print {
				_, err := fmt.Fprint(cmd.OutOrStdout(), text)
				return err
			}
			if _, err := os.Stat(filepath.Dir(unitPath)); err != nil {
				return fault.Wrap(fault.Unavailable, err, "this machine has no systemd: %s is missing", filepath.Dir(unitPath)).
					WithHint("start the server with `oc up`, or see the unit with --print")
			}
			if err := durable.WriteFile(unitPath, []byte(text), 0o644); err != nil {
				return fault.Wrap(fault.Unavailable, err, "%s cannot be written", unitPath).WithHint("run oc install-service as root")
			}
			const next = "systemctl daemon-reload && systemctl enable --now opencomputer"
			if wantsJSON(cmd) {
				return printJSON(cmd, map[string]string{"path": unitPath, "next": next})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Wrote %s. Now:\n  %s\n", unitPath, next)
			return nil
		},
	}
	s.BindDataDir(cmd.Flags())
	cmd.Flags().BoolVar(&print, "print", false, "print the unit instead of writing it")
	return cmd
}
