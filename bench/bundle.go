// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// object is a JSON object.
type object = map[string]any

// writeBundle writes an OCI bundle as one would by hand: the guest program on
// the given EROFS image, above it an overlay whose writable layer is a file in
// disks, as in our own sandboxes. The one bind mount is needed for that file:
// the engine makes it in its gofer's code path.
func writeBundle(dir, erofs, disks string) error {
	empty := filepath.Join(dir, "empty")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	b, err := json.MarshalIndent(object{
		"ociVersion": "1.1.0",
		"hostname":   "bench",
		"process": object{
			"args": []string{guestPath, "serve"},
			"cwd":  "/",
			"env":  []string{"PATH=/bin"},
		},
		"root": object{"path": empty},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/sys", "type": "sysfs", "source": "sysfs"},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/.oc/ro", "type": "bind", "source": empty, "options": []string{"ro", "rbind"}},
		},
		"annotations": map[string]string{
			"dev.gvisor.spec.rootfs.source":  erofs,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "dir=" + disks,
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%d", int64(boxDiskMB)<<20),
		},
		"linux": object{"namespaces": []object{
			{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
		}},
	}, "", "\t")
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}
