// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// generationFile holds the id of the present run of the sandbox. It is written
// in place, so that a program can watch it to learn that it was copied.
const generationFile = "/run/oc/generation"

const maxEntropy = 4 << 10

// setIdentity makes the sandbox a machine of its own. To do it twice changes
// nothing more.
func (a *Agent) setIdentity(id wire.Identity) error {
	if err := checkIdentity(id); err != nil {
		return err
	}
	a.identity.Lock()
	defer a.identity.Unlock()
	if len(id.Entropy) > 0 && a.cfg.PID1 {
		if err := os.WriteFile("/dev/urandom", id.Entropy, 0); err != nil {
			return fmt.Errorf("mix in entropy: %w", err)
		}
	}
	if id.Hostname != "" {
		if err := a.setHostname(id.Hostname); err != nil {
			return err
		}
	}
	if id.MachineID != "" {
		if err := a.replace("/etc/machine-id", []byte(id.MachineID+"\n"), 0o444); err != nil {
			return err
		}
	}
	return a.setGeneration(id.Generation)
}

func checkIdentity(id wire.Identity) error {
	switch {
	case id.Hostname != "" && !isHostname(id.Hostname):
		return failf(wire.Invalid, "%q is not a host name", id.Hostname)
	case id.MachineID != "" && (len(id.MachineID) != 32 || strings.Trim(id.MachineID, "0123456789abcdef") != ""):
		return failf(wire.Invalid, "a machine id is 32 lower-case hexadecimal digits, not %q", id.MachineID)
	case len(id.Entropy) > maxEntropy:
		return failf(wire.Invalid, "more than %d bytes of entropy", maxEntropy)
	case len(id.Generation) > 256 || strings.ContainsAny(id.Generation, "\n\x00"):
		return failf(wire.Invalid, "%q is not a generation", id.Generation)
	}
	return nil
}

// isHostname tells whether a name is one or more labels of letters, digits and
// inner hyphens, and short enough for the kernel.
func isHostname(name string) bool {
	if len(name) > 64 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			letter := 'a' <= c|0x20 && c|0x20 <= 'z'
			if !letter && c != '-' && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return true
}

func (a *Agent) setHostname(name string) error {
	if a.cfg.PID1 {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
	}
	if err := a.replace("/etc/hostname", []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	old, err := os.ReadFile(a.inRoot("/etc/hosts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return a.replace("/etc/hosts", hosts(old, name), 0o644)
}

// hosts gives an /etc/hosts in which 127.0.1.1 is the sandbox's own name, and
// 127.0.0.1 is localhost; other lines stay.
func hosts(old []byte, name string) []byte {
	var out bytes.Buffer
	localhost := false
	for line := range strings.Lines(string(old)) {
		f := strings.Fields(line)
		if len(f) > 0 && f[0] == "127.0.1.1" {
			continue
		}
		localhost = localhost || len(f) > 1 && f[0] == "127.0.0.1"
		out.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	out.WriteString("127.0.1.1\t" + name + "\n")
	if localhost {
		return out.Bytes()
	}
	return append([]byte("127.0.0.1\tlocalhost\n"), out.Bytes()...)
}

// setGeneration writes the generation file if it says something else. Without
// a generation of its own an identity has that of the latest Hello.
func (a *Agent) setGeneration(id string) error {
	if id == "" {
		a.mu.Lock()
		id = a.generation
		a.mu.Unlock()
	}
	path := a.inRoot(generationFile)
	if old, err := os.ReadFile(path); id == "" || err == nil && string(old) == id+"\n" {
		return nil
	}
	return os.WriteFile(path, []byte(id+"\n"), 0o644)
}

// replace writes a file of the system, unless it is so already. On a full disk
// it writes over the old one, which needs no space: a sandbox must not be lost
// because it was checkpointed with a full disk.
func (a *Agent) replace(path string, content []byte, perm fs.FileMode) error {
	path = a.inRoot(path)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	err := replaceFile(path, perm, 0, 0, bytes.NewReader(content))
	if errors.Is(err, unix.ENOSPC) && overwrite(path, content) == nil {
		return nil
	}
	return err
}

// overwrite changes a regular file in place.
func overwrite(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // not blocking: it may be a pipe by now
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	return errors.Join(err, f.Close())
}
