// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// linkTree makes dst a copy of a tree that shares its files: directories are
// made anew, all else is a hard link. It lets an image have more in it than its
// tree without a change to the tree, at the cost of names only. Nothing may
// write to files below dst.
func linkTree(ctx context.Context, src, dst string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: src, Err: err}
	}
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())
		if e.IsDir() {
			err = linkTree(ctx, from, to)
		} else {
			err = os.Link(from, to) // does not follow links
		}
		if err != nil {
			return err
		}
	}
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: dst, Err: err}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chtimes", Path: dst, Err: err}
	}
	return nil
}

// addAgent puts what is the agent's into a linked tree, which has nothing of
// the reserved name.
func addAgent(root string, agent []byte) error {
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: root, Err: err}
	}
	dir := filepath.Join(root, reservedDir)
	for _, d := range []string{dir, filepath.Join(dir, "ro")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(d, 0o755); err != nil { // whatever the umask
			return err
		}
	}
	file := filepath.Join(dir, "agent")
	if err := os.WriteFile(file, agent, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(file, 0o755); err != nil {
		return err
	}
	for _, p := range []string{file, filepath.Join(dir, "ro"), dir} {
		if err := setTime(p, stamp); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, root, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
