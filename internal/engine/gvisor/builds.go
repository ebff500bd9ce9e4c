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
	"regexp"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
)

// KeepBuild makes sure that there is a kept copy of the running build in dir, a
// Config.BuildsDir, and gives its path.
func KeepBuild(dir string) (path string, err error) {
	hash, err := keepBuild(dir, ownBinary)
	return buildPath(dir, hash), err
}

// ownBinary is the file of this process, also where it has no name any more.
const ownBinary = "/proc/self/exe"

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
	if _, err := os.Stat(buildPath(dir, hash)); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return hash, err
	}
	if _, err := self.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("engine: reading our own binary: %w", err)
	}
	return hash, addBuild(dir, hash, self)
}

// addBuild keeps what r gives as the build of that hash, if it is.
func addBuild(dir, hash string, r io.Reader) error {
	path := buildPath(dir, hash)
	if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("engine: keeping a build: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".oc-")
	if err != nil {
		return fmt.Errorf("engine: keeping a build: %w", err)
	}
	defer os.Remove(tmp.Name())
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(tmp, h), r)
	if err = errors.Join(err, tmp.Chmod(0o755), tmp.Close()); err != nil {
		return fmt.Errorf("engine: keeping a build: %w", err)
	}
	if hex.EncodeToString(h.Sum(nil)) != hash {
		return errors.Join(fault.New(fault.Invalid, "the bytes received are not the oc build %.12s", hash), os.Remove(tmp.Name()), os.Remove(filepath.Dir(path)))
	}
	if err := durable.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("engine: keeping a build: %w", err)
	}
	return nil
}

// validBuild keeps what came from elsewhere from being a path.
var validBuild = regexp.MustCompile(`^[0-9a-f]{64}$`)

// BuildFile implements engine.Driver.
func (d *Driver) BuildFile(build string) (string, bool) {
	if !validBuild.MatchString(build) {
		return "", false
	}
	path := buildPath(d.cfg.BuildsDir, build)
	_, err := os.Stat(path)
	return path, err == nil
}

// AddBuild implements engine.Driver.
func (d *Driver) AddBuild(build string, r io.Reader) error {
	if !validBuild.MatchString(build) {
		return fault.New(fault.Invalid, "%q is not the hash of an oc build", build)
	}
	return addBuild(d.cfg.BuildsDir, build, r)
}

func buildPath(dir, hash string) string { return filepath.Join(dir, hash, "oc") }
