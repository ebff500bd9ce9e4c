// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/fault"
)

// Instance is what a running server leaves in the data directory for the
// commands up, down and status.
type Instance struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // with PID the identity of the process
	Version   string `json:"version"`
	APIURL    string `json:"apiUrl"`
	DataDir   string `json:"dataDir"`
}

const (
	instanceFile = "server.json"
	lockFile     = "server.lock"
)

// FindInstance gives the server that runs on the data directory, or nil.
func FindInstance(dataDir string) (*Instance, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, instanceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", instanceFile, err)
	}
	var i Instance
	if err := json.Unmarshal(b, &i); err != nil || !i.Alive() {
		return nil, nil //nolint:nilerr // half a file or a dead process: no server
	}
	return &i, nil
}

// Alive tells whether the server's process still runs.
func (i Instance) Alive() bool { return proc.Alive(i.PID, i.StartTime) }

func (i Instance) write() error {
	start, err := proc.StartTime(os.Getpid())
	if err != nil {
		return err
	}
	i.PID, i.StartTime = os.Getpid(), start
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return durable.WriteFile(filepath.Join(i.DataDir, instanceFile), b, 0o644)
}

// lockData makes sure that one server at a time uses the data directory. The
// lock ends with the process. patience is how long the lock of a server is tried
// that is no more: one that was killed is dying for a while, thread by thread.
func lockData(dataDir string, patience time.Duration) (*os.File, error) {
	if err := makeData(dataDir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dataDir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the data directory %s cannot be used", dataDir).WithHint("run oc serve as root")
	}
	for end := time.Now().Add(patience); ; time.Sleep(lockPoll) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		i, _ := FindInstance(dataDir)
		if i == nil && time.Now().Before(end) {
			continue
		}
		who := "another process"
		if i != nil {
			who = fmt.Sprintf("the server with pid %d", i.PID)
		}
		return nil, errors.Join(fault.New(fault.Conflict, "the data directory %s is in use by %s", dataDir, who).
			WithHint("stop it with `oc down`, or choose another --data-dir"), f.Close())
	}
}

// makeData makes the data directory where there is none.
func makeData(dataDir string) error {
	if err := os.MkdirAll(dataDir, 0o711); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the data directory %s cannot be made", dataDir).WithHint("run oc serve as root")
	}
	return nil
}

// How long, and how often, the lock of a server that is no more is tried.
const (
	lockPatience = 10 * time.Second
	lockPoll     = 10 * time.Millisecond
)
