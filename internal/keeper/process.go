// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

const (
	// oomScoreAdj makes the keeper one of the last processes the kernel ends
	// for want of memory: it needs next to none, and every sandbox of the node
	// would lose its sockets.
	oomScoreAdj = -950
	// maxPath is the longest path of a unix socket (unix(7), sun_path).
	maxPath = 107
)

// Main is the keeper process: it makes the calling process one that outlives
// its starter, listens at path and serves until a client stops it. Every
// signal that usually ends a server is ignored; SIGKILL remains.
//
// The starter gives it a session, a cgroup and standard files of its own. Only
// one keeper serves a path: a second one fails with a Conflict fault.
func Main(path string, log *slog.Logger) error {
	// A log that nobody reads any more must not end the keeper: SIGPIPE too.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	_, _ = unix.Setsid() // fails where the starter did it
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if err := os.Chdir("/"); err != nil { // hold no mount
		return fmt.Errorf("keeper: %w", err)
	}
	if err := preferLife(); err != nil {
		log.Warn("the keeper is not protected when memory runs out", "err", err)
	}
	if err := raiseLimit(); err != nil {
		log.Warn("the keeper holds fewer descriptors", "err", err)
	}
	lock, l, err := listen(path)
	if err != nil {
		return err
	}
	defer lock.Close()
	log.Info("keeper serves", "socket", path, "pid", os.Getpid())
	return Run(context.Background(), l, log)
}

// preferLife lowers the score by which the kernel chooses whom to end.
func preferLife() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(oomScoreAdj)), 0o644)
}

// raiseLimit makes room for MaxDescriptors.
func raiseLimit() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	const want = MaxDescriptors + reserved
	if lim.Cur >= want {
		return nil
	}
	lim.Cur, lim.Max = want, max(lim.Max, want)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
}

// listen makes the socket, in place of one that a dead keeper left. The lock,
// held as long as the file is open, tells the dead from the living.
func listen(path string) (*os.File, *net.UnixListener, error) {
	if len(path) > maxPath {
		return nil, nil, fault.New(fault.Invalid, "the path of the keeper's socket is longer than %d characters: %s", maxPath, path).
			WithHint("use a data directory with a shorter name")
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, nil, fault.Wrap(fault.Conflict, err, "another keeper serves %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		lock.Close()
		return nil, nil, fmt.Errorf("keeper: %w", err)
	}
	unix.Umask(0o077)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		lock.Close()
		return nil, nil, fmt.Errorf("keeper: %w", err)
	}
	return lock, l, nil
}
