// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/cli/archive"
	"github.com/spf13/cobra"
)

// copyHelp is the rule of push and pull for destinations.
const copyHelp = `The destination is the name to give to the copy. If it ends in "/", or is "." or
"..", it is the directory to put the copy into under its own name. A directory
is laid over one that exists. Relative paths in the sandbox count from the
user's home. Permission bits and symbolic links are kept.`

func (a *app) newPush() *cobra.Command {
	return &cobra.Command{
		Use: "push <sandbox> <local> <remote>", Short: "Copy a file or directory into a sandbox",
		Long: "Copy a file or directory into a sandbox.\n\n" + copyHelp, Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c *client.Client) error {
				return a.push(ctx, c, args[0], args[1], args[2])
			})
		},
	}
}

func (a *app) push(ctx context.Context, c *client.Client, sandbox, local, remote string) error {
	if remote == "" {
		return usage(`use "." for the home directory`, "the remote path is empty")
	}
	info, err := os.Stat(local)
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return usage("for what a pipe or a device gives: oc exec SANDBOX -- tee REMOTE < LOCAL > /dev/null",
			"%s is neither a file nor a directory", local)
	}
	if intoDirectory(remote) {
		abs, err := filepath.Abs(local)
		if err != nil {
			return err
		}
		remote = path.Join(remote, filepath.Base(abs))
	}
	// A directory is unpacked in its own place, which may be a link in the sandbox
	// (/workspace is one), a file in the directory above it.
	dir, member := remote, "."
	if !info.IsDir() {
		dir, member = path.Dir(remote), path.Base(remote)
	}
	p := a.progress("Copying " + local)
	defer p.end()
	stats, err := sendArchive(ctx, local, member, p.notices(), func(r io.Reader) error {
		return c.PushTar(ctx, sandbox, dir, r)
	})
	p.end()
	if err != nil {
		return err
	}
	return a.copied(stats, func() error {
		return a.say("Pushed %s to %s:%s (%s)", local, sandbox, remote, amount(stats))
	})
}

// sendArchive packs a local file or directory into what send reads. Of the two
// errors it gives the one that was first: reading or sending.
func sendArchive(ctx context.Context, local, member string, notices archive.Notices, send func(io.Reader) error) (archive.Stats, error) {
	r, w := io.Pipe()
	var stats archive.Stats
	var packErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		stats, packErr = archive.Pack(ctx, w, local, member, notices)
		w.CloseWithError(packErr)
	})
	err := send(r)
	r.CloseWithError(errNotRead)
	wg.Wait()
	if packErr != nil && !errors.Is(packErr, errNotRead) {
		return stats, packErr
	}
	return stats, err
}

// errNotRead is what packing ends with when the server wanted no more.
var errNotRead = errors.New("the server stopped reading")

// intoDirectory tells whether a destination is the directory to put the copy in.
func intoDirectory(dest string) bool {
	base := dest[strings.LastIndexByte(dest, '/')+1:]
	return base == "" || base == "." || base == ".."
}

// notices shows a copy's progress.
func (p *progress) notices() archive.Notices {
	return archive.Notices{
		Skipped:  func(name, reason string) { p.warn("skipped %s: %s", name, reason) },
		Progress: func(s archive.Stats) { p.quiet("Copied " + amount(s)) },
	}
}

// amount says how much was copied.
func amount(s archive.Stats) string {
	files := "files"
	if s.Files == 1 {
		files = "file"
	}
	return fmt.Sprintf("%d %s, %.1f MB", s.Files, files, float64(s.Bytes)/(1<<20))
}

// copied answers a push or pull.
func (a *app) copied(s archive.Stats, human func() error) error {
	return a.answer(struct {
		Files int   `json:"files"`
		Bytes int64 `json:"bytes"`
	}{s.Files, s.Bytes}, human)
}
