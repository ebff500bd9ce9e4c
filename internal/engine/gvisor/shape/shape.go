// SPDX-License-Identifier: Apache-2.0

// Package shape makes an engine process show its guest the CPUs and memory
// that the generation was given.
//
// gVisor derives both from cgroup limits, where it sets memory to all of the
// limit, leaving no room for the engine itself, and never shows fewer than two
// CPUs. It passes them to its sandbox process as flags of `boot`; that process
// is this binary, and before it becomes the engine it puts the shape that was
// left beside the OCI bundle in their place.
package shape

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencomputer/oc/internal/engine"
)

const fileName = "shape.json"

// Write leaves the shape in the bundle directory.
func Write(bundle string, s engine.Shape) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("shape: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, fileName), b, 0o600); err != nil {
		return fmt.Errorf("shape: %w", err)
	}
	return nil
}

// Read gives the shape that was left in the bundle directory.
func Read(bundle string) (s engine.Shape, err error) {
	b, err := os.ReadFile(filepath.Join(bundle, fileName))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && (s.CPUs <= 0 || s.MemoryBytes <= 0) {
		err = fmt.Errorf("%d CPUs and %d bytes of memory are no shape", s.CPUs, s.MemoryBytes)
	}
	if err != nil {
		return engine.Shape{}, fmt.Errorf("shape: %w", err)
	}
	return s, nil
}

// Apply gives argv with the shape's flags in place, and true, if argv starts a sandbox
// process whose bundle has a shape, and argv as it is otherwise. gVisor
// re-executes the sandbox process with its changed argv inside a chroot, where
// the bundle is no longer to be found and the flags are already right.
func Apply(argv []string) ([]string, bool) {
	i := slices.Index(argv, "boot")
	if i < 0 || filepath.Base(argv[0]) != "runsc-sandbox" {
		return argv, false
	}
	bundle := ""
	for _, a := range argv[i:] {
		if v, ok := strings.CutPrefix(a, "--bundle="); ok {
			bundle = v
		}
	}
	if bundle == "" {
		return argv, false
	}
	s, err := Read(bundle)
	if err != nil {
		return argv, false
	}
	return rewrite(argv, i, s), true
}

// rewrite replaces the flags behind argv[boot], in both forms "--f=v" and
// "--f v", and adds those that are missing.
func rewrite(argv []string, boot int, s engine.Shape) []string {
	out := slices.Clone(argv[:boot+1])
	out = append(out,
		"--cpu-num="+strconv.Itoa(s.CPUs),
		"--total-memory="+strconv.FormatInt(s.MemoryBytes, 10))
	for rest := argv[boot+1:]; len(rest) > 0; rest = rest[1:] {
		switch a := rest[0]; {
		case (a == "--cpu-num" || a == "--total-memory") && len(rest) > 1:
			rest = rest[1:]
		case strings.HasPrefix(a, "--cpu-num="), strings.HasPrefix(a, "--total-memory="):
		default:
			out = append(out, a)
		}
	}
	return out
}
