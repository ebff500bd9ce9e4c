// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateipc"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
)

// The engine opens the files of a capture with five calls, and dies of its own
// error handling if one of the last four fails: it is left with a typed nil writer
// (control.setSaveOptsForCheckpointGofer), which it closes (state.SaveOpts.Close).
// So that our death can never be that failure, the answers are in its socket
// before it gets the socket. With the last one there is our end of the pair, on
// its way to nobody: until the engine has read that answer, and drops what came
// with it, there is somebody to ask. Then our death is noticed again, and breaks
// off the capture.
//
// What is told before it is asked needs a socket of packets: of a stream the
// engine's reader would take the beginning of the next answer too. It reads a
// byte with the descriptors, then the rest; so an answer is two packets.

// Calls of the page protocol, as the engine names them.
const (
	callOpen     = "AsyncFileServer.Open"
	callRegister = "AsyncFileServer.RegisterClientFile"
	callClose    = "AsyncFileServer.Close"
)

const (
	// maxCall bounds a call of the engine's, in bytes: it lists the ranges of a
	// memory file that have settings of their own.
	maxCall = 256 << 10
	// maxGather is at least the memory in which the engine gathers what it writes
	// to a file: 8 MiB.
	maxGather = 16 << 20
)

// buffer is the memory in which the engine gathers what it writes to a file. It
// is told that we have it before we do.
type buffer struct {
	came chan struct{} // closed when mem is set, or will never be
	mem  []byte
}

// conn is our end of the connection of a capture.
type conn struct {
	a     *Arena
	sock  *unet.Socket
	files *stateipc.AsyncFileServer
	buf   []byte
	early []call // that are answered and have not come yet
}

// call is a call that is answered before it comes.
type call struct {
	method string
	path   string // of an opening
	handle uint32 // of the file that is registered for
	gather *buffer
}

// offer makes the connection of a capture and gives the engine's end, with the
// answers to the opening in it.
func (a *Arena) offer() (_ *conn, _ *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("pager: socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "page-socket")
	sock, err := unet.NewSocket(fds[0])
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pager: %w", err), unix.Close(fds[0]), theirs.Close())
	}
	files, err := stateipc.NewAsyncFileServer(captureServer{a})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pager: %w", err), sock.Close(), theirs.Close())
	}
	c := &conn{a: a, sock: sock, files: files, buf: make([]byte, maxCall)}
	for _, name := range []string{checkpointfiles.StateFileName, checkpointfiles.PagesMetadataFileName, checkpointfiles.PagesFileName} {
		if err := c.open(name); err != nil {
			c.end()
			return nil, nil, errors.Join(err, theirs.Close())
		}
	}
	return c, theirs, nil
}

// open opens a file that the engine has not asked for yet, and answers it.
func (c *conn) open(name string) error {
	gather := &buffer{came: make(chan struct{})}
	if name != checkpointfiles.PagesFileName {
		c.a.files[name].gather = gather
	}
	var file stateipc.OpenResponse
	if err := c.files.Open(&stateipc.OpenRequest{Path: name, Mode: stateipc.OpenModeWrite}, &file); err != nil {
		return fmt.Errorf("pager: opening %s: %w", name, err)
	}
	window := file.Files[0]
	defer window.Close()
	c.early = append(c.early, call{method: callOpen, path: name})
	if name == checkpointfiles.PagesFileName {
		return c.send(&file, []int{int(window.Fd())}, []int{c.sock.FD()})
	}
	if err := c.send(&file, []int{int(window.Fd())}, nil); err != nil {
		return err
	}
	place, err := placeholder()
	if err != nil {
		return err
	}
	c.early = append(c.early, call{method: callRegister, handle: file.Handle, gather: gather})
	var registered stateipc.RegisterClientFileResponse
	err = c.files.RegisterClientFile(&stateipc.RegisterClientFileRequest{
		Handle: file.Handle, FilePayload: urpc.FilePayload{Files: []*os.File{place}}, Size: maxGather,
	}, &registered) // closes place
	if err != nil {
		return fmt.Errorf("pager: %s: %w", name, err)
	}
	return c.send(&registered, nil, nil)
}

// placeholder is what is registered for memory of the engine's that is still to
// come: it bounds which ranges of that may be named, and is never read.
func placeholder() (*os.File, error) {
	fd, err := unix.MemfdCreate("oc-gather", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	f := os.NewFile(uintptr(fd), "gather")
	if err := f.Truncate(maxGather); err != nil {
		return nil, errors.Join(fmt.Errorf("pager: %w", err), f.Close())
	}
	return f, nil
}

// serve answers the engine until it hangs up.
func (c *conn) serve() {
	defer c.end()
	for c.next() == nil {
	}
}

// end hangs up. It does not shut the pair down: that would also be felt by an
// engine that is still reading what we had told it.
func (c *conn) end() {
	if fd, err := c.sock.Release(); err == nil {
		_ = unix.Close(fd) // nothing is lost with it
	}
	for _, e := range c.early {
		if e.gather != nil {
			close(e.gather.came)
		}
	}
	c.early = nil
	c.files.Stop()
}

// next takes one call and answers it, if it is not answered. After an error the
// connection is of no use.
func (c *conn) next() error {
	var req struct {
		Method string          `json:"method"`
		Arg    json.RawMessage `json:"arg"`
	}
	files, err := c.receive(&req)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // closed already, mostly
		}
	}()
	if len(c.early) > 0 {
		return c.answered(req.Method, req.Arg, files)
	}
	var result any
	switch req.Method {
	case callRegister:
		r := stateipc.RegisterClientFileRequest{FilePayload: urpc.FilePayload{Files: files}}
		var resp stateipc.RegisterClientFileResponse
		if err = json.Unmarshal(req.Arg, &r); err == nil {
			err = c.files.RegisterClientFile(&r, &resp)
		}
		result = &resp
	case callClose:
		var r stateipc.CloseRequest
		if err = json.Unmarshal(req.Arg, &r); err == nil {
			err = c.files.Close(&r, &stateipc.CloseResponse{})
		}
	default:
		err = fmt.Errorf("unexpected call %q", req.Method)
	}
	if err != nil {
		return c.reply(answer{Err: err.Error()}, nil, nil)
	}
	return c.send(result, nil, nil)
}

// answered takes a call that was answered before it came.
func (c *conn) answered(method string, arg json.RawMessage, files []*os.File) error {
	var open stateipc.OpenRequest
	var reg stateipc.RegisterClientFileRequest
	e := c.early[0]
	switch {
	case method != e.method:
	case method == callOpen:
		if err := json.Unmarshal(arg, &open); err == nil && open.Path == e.path && open.Mode == stateipc.OpenModeWrite {
			c.early = c.early[1:]
			return nil
		}
	case len(files) == 1:
		if err := json.Unmarshal(arg, &reg); err == nil && reg.Handle == e.handle && reg.Size <= maxGather {
			mem, err := c.a.gatherFrom(files[0], int(reg.Size))
			if err != nil {
				return err
			}
			e.gather.mem = mem
			close(e.gather.came)
			c.early = c.early[1:]
			return nil
		}
	}
	return fmt.Errorf("pager: the engine calls %s %.200s where %s is next", method, arg, e.method)
}

// answer is the answer to a call.
type answer struct {
	Success bool   `json:"success"`
	Err     string `json:"err"`
	Result  any    `json:"result"`
}

func (c *conn) send(result any, first, rest []int) error {
	return c.reply(answer{Success: true, Result: result}, first, rest)
}

// reply sends an answer, with descriptors beside its first byte and beside the
// rest; the engine drops the latter.
func (c *conn) reply(a answer, first, rest []int) error {
	raw, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("pager: an answer: %w", err)
	}
	for _, p := range []struct {
		data []byte
		fds  []int
	}{{raw[:1], first}, {raw[1:], rest}} {
		w := c.sock.Writer(true)
		if len(p.fds) > 0 {
			w.PackFDs(p.fds...)
		}
		if _, err := w.WriteVec([][]byte{p.data}); err != nil {
			return fmt.Errorf("pager: answering the engine: %w", err)
		}
	}
	return nil
}

// receive reads one call, and the files that came with it.
func (c *conn) receive(v any) (files []*os.File, err error) {
	r := c.sock.Reader(true)
	r.EnableFDs(2) // one is what there is
	n, err := r.ReadVec([][]byte{c.buf})
	if err != nil {
		r.CloseFDs()
		return nil, fmt.Errorf("pager: the engine's call: %w", err)
	}
	fds, err := r.ExtractFDs()
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "engine"))
	}
	if err == nil {
		err = json.Unmarshal(c.buf[:n], v)
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close() // not needed
		}
		return nil, fmt.Errorf("pager: the engine's call: %w", err)
	}
	return files, nil
}
