// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/opencomputer/oc/internal/engine/gvisor"
	"github.com/opencomputer/oc/internal/fault"
)

// Settings of a node. Each is a flag of `oc serve`, an environment variable
// and a key of the configuration file, in that precedence.
type Settings struct {
	DataDir         string
	Listen          string
	Database        string
	Store           string
	StoreEndpoint   string
	StoreRegion     string
	StoreProfile    string
	StoreKeys       string
	CacheMB         int
	CaptureBudgetMB int
	MemoryReserveMB int
	LoadRateMB      int
	Pool            int
	LogLevel        string
	LogFormat       string
	ConfigFile      string
}

// Defaults of the settings.
const (
	DefaultDataDir = "/var/lib/opencomputer"
	DefaultListen  = "127.0.0.1:7778"
	DefaultConfig  = "/etc/opencomputer/config.json"
	DefaultPool    = 4
	DefaultCacheMB = 20 << 10
)

// BindDataDir adds only the flag that every command on this node has.
func (s *Settings) BindDataDir(f *pflag.FlagSet) {
	f.StringVar(&s.DataDir, "data-dir", DefaultDataDir, "directory of all data (env OC_DATA_DIR)")
	f.StringVar(&s.ConfigFile, "config", DefaultConfig, "configuration file, JSON: {\"flag-name\": value, …} (env OC_CONFIG)")
}

// Bind adds the flags of a server.
func (s *Settings) Bind(f *pflag.FlagSet) {
	s.BindDataDir(f)
	f.StringVar(&s.Listen, "listen", DefaultListen, "address of the API; anything but loopback should have TLS in front (env OC_LISTEN)")
	f.StringVar(&s.Database, "database", "", "metadata: a SQLite file or postgres://…; default <data-dir>/meta.db (env OC_DATABASE)")
	f.StringVar(&s.Store, "store", "", "checkpoints: a directory or s3://bucket/prefix; default <data-dir>/store (env OC_STORE)")
	f.StringVar(&s.StoreEndpoint, "store-endpoint", "", "URL of the S3 service, if not Amazon's; also AWS_ENDPOINT_URL (env OC_STORE_ENDPOINT)")
	f.StringVar(&s.StoreRegion, "store-region", "", "region of the bucket; also AWS_REGION (env OC_STORE_REGION)")
	f.StringVar(&s.StoreProfile, "store-profile", "", "profile of the AWS configuration whose credentials are used; also AWS_PROFILE (env OC_STORE_PROFILE)")
	f.StringVar(&s.StoreKeys, "store-keys", "", "file with the keys that seal checkpoints before they are stored, see oc store new-key; default: not sealed (env OC_STORE_KEYS)")
	f.IntVar(&s.CacheMB, "cache", DefaultCacheMB, "MB of disk for pages of checkpoints that are read again (env OC_CACHE)")
	f.IntVar(&s.CaptureBudgetMB, "capture-budget", 0, "MB of memory that captures together may take; one that finds it taken waits, and a sandbox larger than all of it is captured through the disk; 0 = a quarter of the machine (env OC_CAPTURE_BUDGET)")
	f.IntVar(&s.MemoryReserveMB, "memory-reserve", 0, "MB of memory that stay free: what would start into them is refused, loading slows down; 0 = 5 % of the machine, at least 512 (env OC_MEMORY_RESERVE)")
	f.IntVar(&s.LoadRateMB, "load-rate", gvisor.DefaultBulkRate>>20, "MB/s at which a restored sandbox loads the memory that it does not wait for (env OC_LOAD_RATE)")
	f.IntVar(&s.Pool, "pool", DefaultPool, "engine processes kept prepared for creates and spawns of shapes in demand; 0 = none (env OC_POOL)")
	f.StringVar(&s.LogLevel, "log-level", "info", "debug, info, warn or error (env OC_LOG_LEVEL)")
	f.StringVar(&s.LogFormat, "log-format", "text", "text or json (env OC_LOG_FORMAT)")
}

// Complete fills the flags that were not given from the environment (of the
// form of os.LookupEnv) and the configuration file. A missing default file is
// no error.
func (s *Settings) Complete(f *pflag.FlagSet, lookup func(string) (string, bool)) error {
	if v, ok := lookup("OC_CONFIG"); ok && v != "" && !f.Changed("config") {
		s.ConfigFile = v
	}
	file, err := readFile(s.ConfigFile)
	if err != nil {
		return err
	}
	var errs []error
	f.VisitAll(func(fl *pflag.Flag) {
		if fl.Changed || fl.Name == "config" || !strings.Contains(fl.Usage, "(env OC_") {
			return
		}
		env := "OC_" + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		value, from := "", ""
		if v, ok := lookup(env); ok && v != "" { // empty is as good as unset
			value, from = v, "environment variable "+env
		} else if v, ok := file[fl.Name]; ok {
			value, from = v, fl.Name+" in "+s.ConfigFile
		}
		if from == "" {
			return
		}
		if err := f.Set(fl.Name, value); err != nil {
			errs = append(errs, fault.Wrap(fault.Invalid, err, "%s is not valid: %q", from, value))
		}
	})
	for k := range file {
		if !known(k) {
			errs = append(errs, fault.New(fault.Invalid, "%s: unknown setting %q", s.ConfigFile, k).WithHint("oc serve --help names all"))
		}
	}
	for name, v := range map[string]int{"capture-budget": s.CaptureBudgetMB, "memory-reserve": s.MemoryReserveMB, "load-rate": s.LoadRateMB, "pool": s.Pool, "cache": s.CacheMB} {
		if v < 0 {
			errs = append(errs, fault.New(fault.Invalid, "%s is %d; it must not be negative", name, v))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	abs, err := filepath.Abs(s.DataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	s.DataDir = abs
	return nil
}

// known tells whether a server has a setting of that name.
func known(name string) bool {
	all := pflag.NewFlagSet("all", pflag.ContinueOnError)
	new(Settings).Bind(all)
	return all.Lookup(name) != nil && name != "config"
}

// readFile gives the values of a configuration file as they would be written
// behind a flag.
func readFile(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && path == DefaultConfig {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the configuration file cannot be read")
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "%s is not a JSON object", path)
	}
	out := map[string]string{}
	for k, raw := range m {
		var v string
		switch raw[0] {
		case '"':
			err = json.Unmarshal(raw, &v)
		case '{', '[', 'n': // null
			err = errors.New("a setting is text or a number")
		default: // a number or truth value as it is written
			v = string(raw)
		}
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "%s in %s is not valid", k, path)
		}
		out[k] = v
	}
	return out, nil
}

// places are the paths that follow from the data directory.
type places struct {
	data, run, cgroup string
}

// placesOf gives short run-time paths, because unix sockets live there, of
// their own for each data directory.
func placesOf(dataDir string) places {
	sum := sha256.Sum256([]byte(dataDir))
	key := hex.EncodeToString(sum[:4])
	return places{data: dataDir, run: "/run/opencomputer/" + key, cgroup: "opencomputer/" + key}
}

func (p places) in(name string) string { return filepath.Join(p.data, name) }

func (p places) keeperSocket() string { return filepath.Join(p.run, "keeper.sock") }
