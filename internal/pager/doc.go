// SPDX-License-Identifier: Apache-2.0

// Package pager moves a sandbox's pages: out of a frozen engine into a capture
// arena, and from a checkpoint into a restored engine as it asks for them.
//
// It speaks gVisor's page protocol (pkg/sentry/state/stateipc): the engine is
// the client, this package the server of the three files of a capture. It runs
// inside engine helpers, never inside the server, and it knows nothing of
// containers, sandboxes or rows.
//
// Invariants:
//   - Inside the pause only memory is compared, by a cheap hash, and copied: arena
//     pages are faulted in before the freeze, nothing is compressed or written to
//     disk.
//   - Pages are served only as the source returns them, which is verified. A
//     page that cannot be had fails the load; it is never made up.
//   - An engine that loses this process while it is captured loses the capture,
//     and nothing else, at whatever moment.
//   - Reads that a waiting guest caused are served at once; the rest arrives at
//     a bounded rate, so that loading does not starve what already runs, and
//     hardly any of it before it is told to begin.
package pager

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/state/stateipc"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"

	"github.com/opencomputer/oc/internal/engine"
)

// pageSize is the unit of guest memory.
const pageSize = engine.PageSize

// serve answers the page protocol on a fresh socket pair with impl, and gives
// the engine's end. The server ends when all copies of that end are closed.
func serve(impl stateipc.AsyncFileServerImpl) (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pager: socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "page-socket")
	sock, err := unet.NewSocket(fds[0])
	if err != nil {
		_ = unix.Close(fds[0])
		_ = theirs.Close()
		return nil, fmt.Errorf("pager: %w", err)
	}
	files, err := stateipc.NewAsyncFileServer(impl)
	if err != nil {
		_ = sock.Close()
		_ = theirs.Close()
		return nil, fmt.Errorf("pager: %w", err)
	}
	srv := urpc.NewServer()
	srv.Register(files)
	srv.StartHandling(sock)
	return theirs, nil
}
