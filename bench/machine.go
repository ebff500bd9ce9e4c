// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine says in one paragraph what the numbers were taken on.
func machine(binary, dir string) string {
	var u unix.Utsname
	_ = unix.Uname(&u) // never fails with a valid buffer
	memory, _ := field("/proc/meminfo", "MemTotal")
	model, _ := field("/proc/cpuinfo", "model name")
	version, err := exec.Command(binary, "version").Output()
	if err != nil {
		version = []byte("oc of unknown version")
	}
	first, _, _ := strings.Cut(string(version), "\n")
	return fmt.Sprintf("%s; %d × %s, %s memory, %s, Linux %s, load %s",
		first, runtime.NumCPU(), model, memory, fileSystem(dir),
		bytes.TrimRight(u.Release[:], "\x00"), load())
}

// field gives the value of the first line "name: value" of a file in /proc.
func field(file, name string) (string, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// load is the load average of the last one, five and fifteen minutes.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}

// fileSystem names the kind of the file system that dir is on.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown file system"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs: what is synced costs nothing here", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	}
	if name, ok := names[st.Type]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
