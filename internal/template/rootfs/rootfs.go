// SPDX-License-Identifier: Apache-2.0

// Package rootfs works inside a directory whose content is hostile, the way a
// process chrooted there would see it.
//
// A symbolic link in a root file system usually has an absolute target
// (/var/run -> /run) that means a place in that file system, not on the host.
// So every name is resolved by the kernel with openat2(2) RESOLVE_IN_ROOT: "/"
// and ".." of names and of link targets are those of the root. Nothing that a
// name or a link says can reach what is outside.
//
// Invariants: the parent of a name is resolved through links, its last element
// never is, except by ReadFile, ReadDir and MkdirAll, which say so. A Root is
// for one goroutine, and nobody else changes the directory meanwhile.
//
// The package knows nothing of archives, users or templates. It needs Linux 5.6
// and /proc.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the dangling links that MkdirAll follows, like the kernel
// does for others.
const maxLinks = 40

// Root is a directory that is worked in.
type Root struct {
	dir *os.File

	// The last parent directory that was resolved, because archives name many
	// files of one directory in a row. Only a removal can make it stale.
	last     *os.File
	lastName string
}

// Open opens dir as a Root. Its own path may go through links as usual.
func Open(dir string) (*Root, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Root{dir: f}, nil
}

// Close closes the Root.
func (r *Root) Close() error {
	r.forget()
	return r.dir.Close()
}

// Clean gives a name's canonical form: relative to the root, without "." and
// ".." elements; "." is the root itself.
func Clean(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return "."
	}
	return name
}

// open opens a name, through links, inside the root.
func (r *Root) open(name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(r.dir.Fd()), Clean(name), &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// at gives the directory that holds a name and its last element. For the root
// itself the element is ".".
func (r *Root) at(name string) (dir int, base string, err error) {
	parent, base := path.Split(Clean(name))
	if r.last == nil || parent != r.lastName {
		f, err := r.open(parent, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return -1, "", err
		}
		r.forget()
		r.last, r.lastName = f, parent
	}
	return int(r.last.Fd()), base, nil
}

func (r *Root) forget() {
	if r.last != nil {
		r.last.Close()
		r.last = nil
	}
}

// do runs a system call on the directory and last element of a name.
func (r *Root) do(op, name string, call func(dir int, base string) error) error {
	dir, base, err := r.at(name)
	if err != nil {
		return err
	}
	if err := call(dir, base); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// Lstat gives what the kernel knows about a name.
func (r *Root) Lstat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := r.do("lstat", name, func(dir int, base string) error {
		return unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

// Exists tells whether there is something of that name.
func (r *Root) Exists(name string) bool {
	_, err := r.Lstat(name)
	return err == nil
}

// Readlink gives a link's target.
func (r *Root) Readlink(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := r.do("readlink", name, func(dir int, base string) (err error) {
		n, err = unix.Readlinkat(dir, base, buf)
		return err
	})
	return string(buf[:max(n, 0)]), err
}

// OpenFile opens a regular file for reading, through links. Anything that is
// not a regular file is refused without having been opened.
func (r *Root) OpenFile(name string) (*os.File, error) {
	p, err := r.open(name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(p.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(procPath(p))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return f, nil
}

// ReadFile reads a regular file of at most limit bytes, through links.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.OpenFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, nil
}

// ReadDir gives the names in a directory, through links.
func (r *Root) ReadDir(name string) ([]string, error) {
	f, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Create makes a new regular file. The name must be free.
func (r *Root) Create(name string, mode uint32) (*os.File, error) {
	var f *os.File
	err := r.do("create", name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if err == nil {
			f = os.NewFile(uintptr(fd), name)
		}
		return err
	})
	return f, err
}

// WriteFile replaces whatever has the name by a regular file of exactly that
// content and mode.
func (r *Root) WriteFile(name string, data []byte, mode uint32) error {
	if err := r.RemoveAll(name); err != nil {
		return err
	}
	f, err := r.Create(name, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return r.Chmod(name, mode)
}

// Mkdir makes a directory. The name must be free.
func (r *Root) Mkdir(name string, mode uint32) error {
	return r.do("mkdir", name, func(dir int, base string) error {
		return unix.Mkdirat(dir, base, mode)
	})
}

// MkdirAll makes a directory and its missing parents, through links: where a
// link leads to nothing, its target is made.
func (r *Root) MkdirAll(name string, mode uint32) error {
	links := 0
	return r.mkdirAll(Clean(name), mode, &links)
}

func (r *Root) mkdirAll(name string, mode uint32, links *int) error {
	f, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := r.mkdirAll(path.Dir(name), mode, links); err != nil {
		return err
	}
	err = r.Mkdir(name, mode)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	target, err := r.Readlink(name)
	if err != nil {
		return err
	}
	if *links++; *links > maxLinks {
		return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ELOOP}
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(name), target)
	}
	return r.mkdirAll(Clean(target), mode, links)
}

// Symlink makes a link with any target. The name must be free.
func (r *Root) Symlink(target, name string) error {
	return r.do("symlink", name, func(dir int, base string) error {
		return unix.Symlinkat(target, dir, base)
	})
}

// Mkfifo makes a named pipe. The name must be free.
func (r *Root) Mkfifo(name string, mode uint32) error {
	return r.do("mkfifo", name, func(dir int, base string) error {
		return unix.Mknodat(dir, base, unix.S_IFIFO|mode&0o7777, 0)
	})
}

// Link makes name a hard link to the existing old, which is not followed.
func (r *Root) Link(old, name string) error {
	parent, oldBase := path.Split(Clean(old))
	f, err := r.open(parent, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.do("link", name, func(dir int, base string) error {
		return unix.Linkat(int(f.Fd()), oldBase, dir, base, 0)
	})
}

// RemoveAll removes whatever has the name, with all below it. What is not there
// is no error; the root itself cannot be removed.
func (r *Root) RemoveAll(name string) error {
	dir, base, err := r.at(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	if base == "." {
		return &fs.PathError{Op: "remove", Path: name, Err: unix.EBUSY}
	}
	err = unix.Unlinkat(dir, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	// os.Root refuses to leave its directory by links, and removal follows none.
	parent, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	err = parent.RemoveAll(base)
	r.forget()
	return err
}

// Lchown sets the owner, also of a link itself.
func (r *Root) Lchown(name string, uid, gid int) error {
	return r.do("chown", name, func(dir int, base string) error {
		return unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// Chmod sets the permission bits, with setuid, setgid and sticky. It refuses
// links, which have none.
func (r *Root) Chmod(name string, mode uint32) error {
	return r.viaFD(name, func(p string) error { return unix.Chmod(p, mode&0o7777) })
}

// Setxattr sets an extended attribute of a file or directory.
func (r *Root) Setxattr(name, key string, value []byte) error {
	return r.viaFD(name, func(p string) error { return unix.Setxattr(p, key, value, 0) })
}

// Lchtimes sets the time of modification (and of access), also of a link.
func (r *Root) Lchtimes(name string, t time.Time) error {
	ts := unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	return r.do("chtimes", name, func(dir int, base string) error {
		return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// viaFD runs a system call that only takes paths on an already resolved file
// that is not a link.
func (r *Root) viaFD(name string, call func(p string) error) error {
	return r.do("set attribute of", name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.ELOOP
		}
		return call(procPath(f))
	})
}

func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
