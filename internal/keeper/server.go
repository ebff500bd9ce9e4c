// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxClients bounds the connections. One server and one or two tools is
	// what there is.
	maxClients = 64
	// reserved descriptors are for the listener, the clients, what is under
	// way in their messages, and the runtime.
	reserved = maxClients*(1+2*MaxFiles) + 64
	// sendTimeout ends a client that does not read its replies.
	sendTimeout = 10 * time.Second
	// acceptPause is the wait after a failed accept (out of descriptors or
	// memory).
	acceptPause = 100 * time.Millisecond
)

// Run serves the listener, a SOCK_SEQPACKET ("unixpacket") one, until ctx ends
// or a client stops it, and closes it. What it still holds then is closed. The
// number of descriptors it takes is MaxDescriptors, or less if the limit of
// open files of the process is too low for that.
func Run(ctx context.Context, l *net.UnixListener, log *slog.Logger) error {
	capacity, err := capacity()
	if err != nil {
		l.Close()
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	s := &server{held: newHoldings(capacity), stop: stop, log: log, places: make(chan struct{}, maxClients)}
	defer s.held.clear()
	defer s.clients.Wait()
	defer stop()
	closeListener := context.AfterFunc(ctx, func() { l.Close() })
	defer closeListener()
	defer l.Close()
	return s.accept(ctx, l)
}

// capacity is the number of descriptors that may be held within the limit of
// the process.
func capacity() (int, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("keeper: limit of open files: %w", err)
	}
	if lim.Cur <= reserved {
		return 0, fmt.Errorf("keeper: the limit of %d open files leaves no room, %d are needed beside what is held", lim.Cur, reserved)
	}
	return int(min(lim.Cur-reserved, MaxDescriptors)), nil
}

type server struct {
	held    *holdings
	stop    context.CancelFunc
	log     *slog.Logger
	places  chan struct{} // one token for each client
	clients sync.WaitGroup
}

func (s *server) accept(ctx context.Context, l *net.UnixListener) error {
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("keeper: %w", err)
		case err != nil:
			// The keeper must not end for want of a descriptor.
			s.log.WarnContext(ctx, "cannot accept a client", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case s.places <- struct{}{}:
			s.clients.Go(func() {
				defer func() { <-s.places }()
				s.serve(ctx, conn)
			})
		default:
			s.log.WarnContext(ctx, "too many clients", "max", maxClients)
			conn.Close()
		}
	}
}

// serve answers one client until it leaves.
func (s *server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	closeConn := context.AfterFunc(ctx, func() { conn.Close() })
	defer closeConn()
	if err := checkPeer(conn); err != nil {
		s.log.WarnContext(ctx, "client refused", "err", err)
		return
	}
	buf := make([]byte, maxRequest+1)
	for {
		p, err := receive(conn, buf)
		if err != nil {
			return
		}
		r, fds := s.answer(p)
		_ = conn.SetWriteDeadline(time.Now().Add(sendTimeout))
		err = send(conn, r.encode(), fds)
		closeAll(fds)
		if s.held.isSealed() {
			s.stop() // whether or not the client still reads
		}
		if err != nil {
			return
		}
	}
}

// answer does what the packet asks, and takes over its descriptors. Those it
// returns are the caller's.
func (s *server) answer(p packet) (reply, []int) {
	req, err := decodeRequest(p.data, len(p.fds))
	if err == nil && !p.whole {
		err = errors.New("the message was cut off: too long, or no room for its descriptors")
	}
	if err != nil {
		closeAll(p.fds)
		if errors.Is(err, errVersion) {
			return reply{statusVersion, err.Error()}, nil
		}
		return reply{statusInvalid, err.Error()}, nil
	}
	switch req.op {
	case opPut:
		return s.put(req.name, p.fds), nil
	case opGet:
		return s.get(req.name)
	case opDrop:
		closeAll(s.held.drop(req.name))
		return reply{}, nil
	case opList:
		return reply{payload: encodeNames(s.held.list(req.name))}, nil
	default: // opStop: decodeRequest lets nothing else through
		if n := s.held.seal(); n > 0 {
			return reply{statusBusy, fmt.Sprintf("%d names are held", n)}, nil
		}
		return reply{}, nil
	}
}

func (s *server) put(name string, fds []int) reply {
	old, st := s.held.put(name, fds)
	if st != statusOK {
		closeAll(fds)
		return reply{st, fmt.Sprintf("no room: the keeper holds at most %d descriptors", s.held.capacity)}
	}
	closeAll(old)
	return reply{}
}

func (s *server) get(name string) (reply, []int) {
	fds, err := s.held.get(name)
	if err != nil {
		return reply{statusFailed, err.Error()}, nil
	}
	if len(fds) == 0 {
		return reply{statusNotFound, "nothing is held under " + name}, nil
	}
	return reply{}, fds
}

// checkPeer lets root in and the user the keeper runs as (unix(7), SO_PEERCRED).
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("credentials of the peer: %w", credErr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("peer pid %d has uid %d", cred.Pid, cred.Uid)
	}
	return nil
}
