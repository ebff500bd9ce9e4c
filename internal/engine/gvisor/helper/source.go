// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine/gvisor/proc"
	"github.com/opencomputer/oc/internal/engine/gvisor/wire"
	"github.com/opencomputer/oc/internal/pager"
	"github.com/opencomputer/oc/internal/pager/link"
	"github.com/opencomputer/oc/internal/store"
)

// pagerOOMScore makes the kernel spare the processes of a restore: sandboxes
// that are still loading die with them.
const pagerOOMScore = -500

// outlive has this process stay when its server goes.
func outlive() {
	ignoreHangups()
	_ = proc.SetOOMScore(os.Getpid(), pagerOOMScore) // needs CAP_SYS_RESOURCE; best effort
}

// openImage opens the checkpoint at a location of the store, and claims it for
// as long as this process reads it.
// Its files, if it has any, are the descriptors from first on.
func openImage(location string, first, files int) (store.Checkpoint, error) {
	if files > wire.MaxFiles {
		return nil, fmt.Errorf("helper: %d files of a checkpoint", files)
	}
	var fs []*os.File
	for fd := first; fd < first+files; fd++ {
		unix.CloseOnExec(fd)
		fs = append(fs, os.NewFile(uintptr(fd), "capture"))
	}
	return store.Reach(context.Background(), location, fs)
}

// openSource gives the files that a restore is from: the pager's where the
// request says that there is one, otherwise those of the image itself, which is
// read once for all targets where that is possible.
func openSource(req wire.Request) (_ pager.Files, done func(), err error) {
	if req.Linked {
		c, err := link.Dial(linkEnd())
		if err != nil {
			return pager.Files{}, nil, err
		}
		return pager.Files{State: c.State(), Meta: c.Meta(), Pages: c.Pages()}, func() { _ = c.Close() }, nil // it ends with us
	}
	image, err := openImage(req.Image, wire.FDCaptured, req.Files)
	if err != nil {
		return pager.Files{}, nil, err
	}
	if im, ok := image.(*store.Image); ok {
		im.Share(len(req.Targets))
	}
	return pager.Files{
		State: image.File(store.FileState), Meta: image.File(store.FileMeta), Pages: image.File(store.FilePages), Bulk: bulk(image),
	}, image.Close, nil
}

// bulk is the pages of an image for reads that no guest waits for.
func bulk(image store.Checkpoint) store.File {
	if im, ok := image.(*store.Image); ok {
		return im.Bulk()
	}
	return image.File(store.FilePages)
}

// linkEnd is this process' end of a link, which no child of it gets.
func linkEnd() *os.File {
	unix.CloseOnExec(wire.FDLink)
	return os.NewFile(wire.FDLink, "link")
}

// serveImage is the pager of a helper of another build: the only one of the two
// that knows the store. It ends when the helper does.
func serveImage(_ *bufio.Reader, _ *events, req wire.Request) error {
	outlive()
	image, err := openImage(req.Image, wire.FDLink+1, req.Files)
	if err != nil {
		_ = link.Refuse(linkEnd(), err) // the helper may be gone
		return err
	}
	defer image.Close()
	return link.Serve(linkEnd(), link.Sources{State: image.File(store.FileState), Meta: image.File(store.FileMeta), Pages: bulk(image)}) // which reads a guest waits for is not known here
}
