// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/cli/config"
	"github.com/spf13/cobra"
)

func (a *app) newConfigGroup() *cobra.Command {
	return group(&cobra.Command{Use: "config", Short: "Show or change ~/.oc/config.json"},
		a.newConfigSet(), a.newConfigShow())
}

func (a *app) newConfigSet() *cobra.Command {
	return &cobra.Command{
		Use: "set api-key|api-url <value>", Short: "Change a setting", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			home, err := a.home()
			if err != nil {
				return err
			}
			file, err := config.Load(home)
			if err != nil {
				return err
			}
			key, value := args[0], args[1]
			switch key {
			case "api-key":
				file.APIKey = value
			case "api-url":
				if _, err := client.New(value, ""); err != nil {
					return err
				}
				file.APIURL = value
			default:
				return usage("", "unknown config key: %s (valid: api-key, api-url)", key)
			}
			if err := file.Save(home); err != nil {
				return err
			}
			return a.answer(map[string]string{"updated": key}, func() error {
				return a.say("Config %s updated.", key)
			})
		},
	}
}

// shown is what "config show" prints.
type shown struct {
	APIURL     string `json:"apiUrl"`
	APIKey     string `json:"apiKey"`
	ConfigFile string `json:"configFile"`
}

func (a *app) newConfigShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the settings in force", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			home, err := a.home()
			if err != nil {
				return err
			}
			apiURL, apiKey, err := a.target()
			if err != nil {
				return err
			}
			s := shown{apiURL, masked(apiKey), config.Path(home)}
			return a.answer(s, func() error {
				return a.say("API URL:     %s\nAPI Key:     %s\nConfig file: %s", s.APIURL, first(s.APIKey, "(not set)"), s.ConfigFile)
			})
		},
	}
}

// masked hides the middle of a key. One too short to hide anything of is no key
// that a server made, and is shown.
func masked(key string) string {
	if len(key) <= 8 {
		return key
	}
	return key[:4] + "****" + key[len(key)-4:]
}
