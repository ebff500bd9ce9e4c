// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencomputer/oc/internal/durable"
)

// keepBuild copies the oc binary at path to <dir>/<sha256>/oc, unless it is
// there, and gives its hash. Engines run from the kept copy, so that replacing
// the installed binary neither disturbs them nor takes away the build that a
// checkpoint needs.
func keepBuild(dir, binary string) (hash string, err error) {
	self, err := os.Open(binary)
	if err != nil {
		return "", fmt.Errorf("engine: opening our own binary: %w", err)
	}
	defer self.Close()
	h := sha256.New()
	if _, err := io.Copy(h, self); err != nil {
		return "", fmt.Errorf("engine: reading our own binary: %w", err)
	}
	hash = hex.EncodeToString(h.Sum(nil))
	path := buildPath(dir, hash)
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return hash, err
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("engine: keeping our build: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".oc-")
	if err != nil {
		return "", fmt.Errorf("engine: keeping our build: %w", err)
	}
	defer os.Remove(tmp.Name())
	if _, err := self.Seek(0, io.SeekStart); err != nil {
		return "", errors.Join(err, tmp.Close())
	}
	_, err = io.Copy(tmp, self)
	if err = errors.Join(err, tmp.Chmod(0o755), tmp.Close()); err != nil {
		return "", fmt.Errorf("engine: keeping our build: %w", err)
	}
	if err := durable.Rename(tmp.Name(), path); err != nil {
		return "", fmt.Errorf("engine: keeping our build: %w", err)
	}
	return hash, nil
}

func buildPath(dir, hash string) string { return filepath.Join(dir, hash, "oc") }
