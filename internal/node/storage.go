// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/bucket/s3"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store"
)

// storeConfig is where the settings want checkpoints to be.
func storeConfig(s Settings, p places) (store.Config, error) {
	c := store.Config{
		Cache: p.in("cache"), CacheBytes: int64(s.CacheMB) << 20, State: p.in("index"),
	}
	if s.StoreKeys != "" { // other processes have other working directories
		abs, err := filepath.Abs(s.StoreKeys)
		if err != nil {
			return c, fmt.Errorf("node: the file of the store's keys: %w", err)
		}
		c.KeyFile = abs
	}
	switch {
	case strings.HasPrefix(s.Store, "s3://"):
		c.S3 = &s3.Config{URL: s.Store, Endpoint: s.StoreEndpoint, Region: s.StoreRegion, Profile: s.StoreProfile}
	case strings.Contains(s.Store, "://"):
		return c, fault.New(fault.Invalid, "--store %s is neither a directory nor s3://bucket/prefix", s.Store)
	case s.StoreEndpoint != "" || s.StoreRegion != "" || s.StoreProfile != "":
		return c, fault.New(fault.Invalid, "--store-endpoint, --store-region and --store-profile are for a store in S3").WithHint("give --store s3://bucket/prefix")
	default:
		dir := s.Store
		if dir == "" {
			dir = p.in("store")
		}
		abs, err := filepath.Abs(dir)
		if err != nil {
			return c, fmt.Errorf("node: the store's directory: %w", err)
		}
		c.Dir = abs
	}
	if c.CacheBytes == 0 {
		c.Cache = ""
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return c, fmt.Errorf("node: %w", err)
	}
	return c, nil
}

// freeSpace is the number of bytes that the disk under a directory has left.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("node: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}
