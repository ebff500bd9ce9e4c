// SPDX-License-Identifier: Apache-2.0

// Package disk is how a generation gets its root file system.
//
// A Kind turns an image into the pieces of an engine configuration that mount
// it. There is one kind, Overlay: the image is an EROFS file that the engine
// reads itself, above it the engine's own overlay with a private, size-limited
// writable layer kept in an unlinked file, so that what a sandbox wrote is in
// the same capture as its memory and is bounded by the disk, not by RAM.
// A second kind, on snapshots, would be another value here.
//
// The package knows OCI configurations and nothing of captures or cgroups.
package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Request says which disk a generation shall have.
type Request struct {
	ImagePath string // EROFS image
	SizeBytes int64  // of the writable layer
	Dir       string // host directory for the layer's file; it must be on the data disk
	Scratch   string // the generation's own run-time directory
}

// Attachment is what to add to the engine's configuration.
type Attachment struct {
	RootPath    string
	Mounts      []specs.Mount
	Annotations map[string]string
	Flags       []string // runsc flags
}

// Kind makes attachments of one sort.
type Kind interface {
	Attach(Request) (Attachment, error)
	// Usage is the number of bytes that the writable layer of the engine
	// process takes on the host's disk; 0 if unknown.
	Usage(enginePID int) int64
}

// goferMount is where the empty read-only bind mount is inside the sandbox.
// The engine creates the writable layer's file in the code path of a gofer,
// so one mount must need a gofer (runsc/container/container.go
// createGoferFilestores; without it: "fdDispenser out of fds").
const goferMount = "/.oc/ro"

// Overlay is the default kind.
type Overlay struct{}

// Attach implements Kind.
func (Overlay) Attach(r Request) (Attachment, error) {
	empty := filepath.Join(r.Scratch, "empty")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return Attachment{}, fmt.Errorf("disk: %w", err)
	}
	return Attachment{
		RootPath: empty, // not used: the root is the annotated image
		Mounts: []specs.Mount{{
			Destination: goferMount, Type: "bind", Source: empty, Options: []string{"ro", "rbind"},
		}},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source":  r.ImagePath,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "dir=" + r.Dir,
			"dev.gvisor.spec.rootfs.options": "size=" + strconv.FormatInt(r.SizeBytes, 10),
		},
		Flags: []string{"--overlay2=root:dir=" + r.Dir},
	}, nil
}

// filestorePrefix is how the engine names the layer's file before unlinking it.
const filestorePrefix = "runsc-filestore-"

// Usage implements Kind: it finds the unlinked file among the engine's
// descriptors and asks how many blocks it has.
func (Overlay) Usage(pid int) (n int64) { return fdUsage(pid, filestorePrefix) }

// fdUsage adds up the allocated bytes of the distinct files that a process has
// open and whose names contain the mark.
func fdUsage(pid int, mark string) (n int64) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	es, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	seen := map[uint64]bool{}
	for _, e := range es {
		name := filepath.Join(dir, e.Name())
		if l, err := os.Readlink(name); err != nil || !strings.Contains(l, mark) {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(name, &st) == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			n += st.Blocks * 512
		}
	}
	return n
}

// MemoryUsage is the number of bytes of guest memory that the engine process
// has allocated; 0 if unknown. It is here beside Usage because both are read
// from the engine's descriptors.
func MemoryUsage(enginePID int) int64 { return fdUsage(enginePID, "memfd:runsc-memory") }
