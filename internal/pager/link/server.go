// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/fault"
)

// Serve answers the requests that come over a connection until its other end is
// closed, and until the reads under way are over; that is no error. It closes
// the connection.
func Serve(conn *os.File, from Sources) error {
	c, err := packets(conn)
	if err != nil {
		return err
	}
	defer c.Close()
	return serve(c, [fileCount]Source{fileState: from.State, fileMeta: from.Meta, filePages: from.Pages})
}

// Refuse tells the other end of a connection why it is not served, and closes
// it. The other end reads it as the error of Dial.
func Refuse(conn *os.File, why error) error {
	c, err := packets(conn)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := awaitGreeting(c); err != nil {
		return err
	}
	return refuse(c, why)
}

// packets makes a connection of a socket, which it closes.
func packets(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("link: the connection is no socket of packets"), c.Close())
	}
	return u, nil
}

func refuse(c *net.UnixConn, why error) error {
	if _, err := c.Write(encodeRefusal(why)); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	return nil
}

// awaitGreeting takes the first packet: it gives the version to speak. A
// connection that is closed must have been read to its end, or what was sent is
// lost.
func awaitGreeting(c *net.UnixConn) (version uint32, err error) {
	b := make([]byte, maxPacket+1)
	n, err := c.Read(b)
	if err != nil {
		return 0, fmt.Errorf("link: the helper is gone: %w", err)
	}
	g, err := decodeGreeting(b[:n])
	return min(g.version, Version), err
}

// server is a connection that is served.
type server struct {
	conn  *net.UnixConn
	files [fileCount]Source
	sizes [fileCount]int64
	mem   []byte
	busy  [slotCount]atomic.Bool // slots that a request is using
}

func serve(c *net.UnixConn, files [fileCount]Source) error {
	version, err := awaitGreeting(c)
	if errors.Is(err, errPacket) {
		return errors.Join(err, refuse(c, err))
	}
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	s := &server{conn: c, files: files}
	h := hello{version: version, slots: slotCount, slotBytes: slotBytes}
	for i, f := range files {
		s.sizes[i] = f.Size()
		h.sizes[i] = s.sizes[i]
	}
	shared, mem, err := memory(slotCount * slotBytes)
	if err != nil {
		return errors.Join(err, refuse(c, err))
	}
	s.mem = mem
	defer unix.Munmap(mem) //nolint:errcheck // of a mapping that there is
	_, _, err = c.WriteMsgUnix(h.encode(), unix.UnixRights(int(shared.Fd())), nil)
	shared.Close()
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	return s.run()
}

// gone tells whether an error says that the other end is closed.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// memory makes the memory that is shared: this process' mapping is the only one
// through which it can ever be written, and its length is fixed.
func memory(size int) (*os.File, []byte, error) {
	fd, err := unix.MemfdCreate("oc-link", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("link: memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "oc-link")
	mem, err := mapAndSeal(fd, size)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("link: memory: %w", err), f.Close())
	}
	return f, mem, nil
}

func mapAndSeal(fd, size int) ([]byte, error) {
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(err, unix.Munmap(mem))
	}
	return mem, nil
}

// run takes requests until the connection ends.
func (s *server) run() error {
	var reads sync.WaitGroup
	defer reads.Wait()
	b := make([]byte, maxPacket+1)
	for {
		n, err := s.conn.Read(b)
		if gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("link: %w", err)
		}
		r, err := decodeRequest(b[:n])
		if err != nil {
			return errors.Join(err, refuse(s.conn, err))
		}
		if err := s.admit(r); err != nil {
			s.reply(reply{id: r.id, err: err})
			continue
		}
		reads.Go(func() { s.answer(r) })
	}
}

// admit takes the slot of a request that can be answered.
func (s *server) admit(r request) error {
	switch {
	case int(r.file) >= fileCount:
		return fault.New(fault.Internal, "link: there is no file %d", r.file)
	case int(r.slot) >= slotCount:
		return fault.New(fault.Internal, "link: there is no slot %d", r.slot)
	case r.length == 0 || r.length > slotBytes:
		return fault.New(fault.Internal, "link: a read of %d bytes does not fit into a slot", r.length)
	case r.offset > uint64(s.sizes[r.file]) || uint64(r.length) > uint64(s.sizes[r.file])-r.offset:
		return fault.New(fault.Internal, "link: a read of %d bytes at %d is beyond the file's end", r.length, r.offset)
	case !s.busy[r.slot].CompareAndSwap(false, true):
		return fault.New(fault.Internal, "link: slot %d is in use", r.slot)
	}
	return nil
}

// answer reads what an admitted request asks for.
func (s *server) answer(r request) {
	at := int(r.slot) * slotBytes
	n, err := s.files[r.file].ReadAt(s.mem[at:at+int(r.length):at+int(r.length)], int64(r.offset))
	if n == int(r.length) {
		err = nil // the end of the file may be told with its last bytes
	} else if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	s.busy[r.slot].Store(false) // before the answer, after which it is used again
	s.reply(reply{id: r.id, n: uint32(n), err: err})
}

// reply sends one. A helper that is gone needs none, which run sees.
func (s *server) reply(r reply) { _, _ = s.conn.Write(r.encode()) }
