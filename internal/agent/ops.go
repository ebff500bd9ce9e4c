// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/agent/wire"
)

// call serves one request: it gives what the Reply is to say.
func (a *Agent) call(c *call, req wire.RequestBody) (any, error) {
	switch req.Op {
	case wire.OpExecStart:
		return with(req, func(r wire.StartRequest) (any, error) {
			s, err := a.startSession(r)
			if err != nil {
				return nil, err
			}
			return s.info(), nil
		})
	case wire.OpExecRun:
		return with(req, func(r wire.StartRequest) (any, error) { return a.run(c, r) })
	case wire.OpExecInfo:
		return a.onSession(req, func(s *session) (any, error) { return s.info(), nil })
	case wire.OpExecList:
		return nil, sendRows(c, func(yield func(any) error) error {
			for _, s := range a.sessions.list() {
				if err := yield(s.info()); err != nil {
					return err
				}
			}
			return nil
		})
	case wire.OpExecAttach:
		return with(req, func(r wire.AttachArgs) (any, error) { return a.attach(c, r) })
	case wire.OpExecStdin:
		return a.onSession(req, func(s *session) (any, error) { return takeStdin(c, s) })
	case wire.OpExecClose:
		return a.onSession(req, func(s *session) (any, error) {
			if s.in == nil {
				return nil, nil
			}
			return nil, s.in.close(c.ctx)
		})
	case wire.OpExecSignal:
		return with(req, a.signal)
	case wire.OpExecResize:
		return with(req, a.resize)
	case wire.OpIdentitySet:
		return with(req, func(r wire.Identity) (any, error) { return nil, a.setIdentity(r) })
	case wire.OpProbe:
		return nil, a.probe()
	}
	return with(req, func(r wire.WriteArgs) (any, error) { return a.fileCall(c, req.Op, r) })
}

// fileCall serves the operations on files. WriteArgs begins as PathArgs does.
func (a *Agent) fileCall(c *call, op wire.Op, r wire.WriteArgs) (any, error) {
	path, err := a.resolve(r.Path)
	if err != nil {
		return nil, err
	}
	switch op {
	case wire.OpFileStat:
		return statFile(path)
	case wire.OpFileList:
		return nil, sendRows(c, func(yield func(any) error) error { return listDir(path, yield) })
	case wire.OpFileMkdir:
		return nil, a.makeDirs(path)
	case wire.OpFileRemove:
		return nil, a.remove(path)
	case wire.OpFileRead:
		return nil, readFile(c, path)
	case wire.OpFileWrite:
		return nil, a.writeFile(path, r.Mode, &upload{c: c})
	case wire.OpFilePack:
		return nil, pack(c, path)
	case wire.OpFileUnpack:
		return nil, a.unpack(path, &upload{c: c})
	}
	return nil, failf(wire.Invalid, "this agent does not know the operation %q", op)
}

// with decodes the arguments of a request for f.
func with[T any](req wire.RequestBody, f func(T) (any, error)) (any, error) {
	var args T
	if len(req.Args) > 0 {
		if err := wire.Unmarshal(req.Args, &args); err != nil {
			return nil, failf(wire.Invalid, "arguments of %s: %v", req.Op, err)
		}
	}
	return f(args)
}

// onSession looks up the session that a request is about.
func (a *Agent) onSession(req wire.RequestBody, f func(*session) (any, error)) (any, error) {
	return with(req, func(r wire.SessionArgs) (any, error) {
		s, err := a.sessions.get(r.Session)
		if err != nil {
			return nil, err
		}
		return f(s)
	})
}

// run starts a session without input and attaches to it.
func (a *Agent) run(c *call, req wire.StartRequest) (any, error) {
	s, err := a.startSession(req)
	if err != nil {
		return nil, err
	}
	if s.in != nil {
		if err := s.in.close(c.ctx); err != nil {
			return nil, err
		}
	}
	return a.attach(c, wire.AttachArgs{Session: s.id})
}

// attach streams a session's output: what is kept from the place asked for, a
// ReplayEnd, then what comes, and at last how the process ended.
func (a *Agent) attach(c *call, args wire.AttachArgs) (any, error) {
	s, err := a.sessions.get(args.Session)
	if err != nil {
		return nil, err
	}
	info := s.info()
	r, missing, backlog, err := s.log.attach(func(start, end int64) (int64, error) {
		switch args.From {
		case wire.FromScrollback, "":
			return start, nil
		case wire.FromEnd:
			return end, nil
		case wire.FromTimeline:
			return info.TimelineStart, nil
		case wire.FromOffset:
			if args.Timeline != "" && args.Timeline != info.Timeline {
				return min(args.Offset, info.TimelineStart), nil
			}
			return args.Offset, nil
		}
		return 0, failf(wire.Invalid, "attach from %q: unknown place", args.From)
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if c.p.ctx.Err() != nil {
			s.log.lose(r)
		} else {
			s.log.detach(r)
		}
	}()
	info.OutputEnd = backlog
	if err := c.accept(wire.AttachAccept{Session: info, From: r.seen, Missing: missing}); err != nil {
		return nil, err
	}
	if err := streamOutput(c, s.log, r, r.seen, backlog); err != nil {
		return nil, err
	}
	return s.exitStatus(), nil
}

// streamOutput sends the log from pos to its end.
func streamOutput(c *call, l *outlog, r *reader, pos, backlog int64) error {
	defer context.AfterFunc(c.ctx, l.wake)()
	header := len(wire.AppendOutputHeader(nil, 0, 0, 0))
	packet := make([]byte, header+wire.MaxChunk)
	data := packet[header:]
	replaying := true
	for {
		if replaying && pos >= backlog {
			replaying = false
			if err := c.send(wire.AppendReplayEnd(nil, c.id, pos)); err != nil {
				return err
			}
		}
		credit, err := c.waitCredit()
		if err != nil {
			return err
		}
		most := wire.Fit(len(data), credit)
		if replaying {
			most = int(min(int64(most), backlog-pos))
		}
		stream, off, n, err := l.next(r, data[:most], c.ctx.Err)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		wire.AppendOutputHeader(packet[:0], c.id, stream, off) // just before the data
		c.spend(n)
		if err := c.send(packet[:header+n]); err != nil {
			return err
		}
		pos = off + int64(n)
	}
}

// takeStdin passes the Data of a call to the session's process.
func takeStdin(c *call, s *session) (any, error) {
	if s.in == nil {
		return nil, failf(wire.Conflict, "the command was not started")
	}
	for {
		k, err := c.next()
		if errors.Is(err, io.EOF) {
			off, _ := s.in.state()
			return wire.StdinResult{Offset: off}, nil
		}
		if err == nil {
			err = s.in.write(c.ctx, k.off, k.b)
		}
		if err != nil {
			return nil, err
		}
	}
}

// signal sends a signal to the process group of a session.
func (a *Agent) signal(r wire.SignalArgs) (any, error) {
	s, err := a.sessions.get(r.Session)
	if err != nil {
		return nil, err
	}
	if r.Signal < 1 || r.Signal > 64 {
		return nil, failf(wire.Invalid, "there is no signal %d", r.Signal)
	}
	pid := s.info().PID
	err = a.reaper.signalGroup(pid, syscall.Signal(r.Signal))
	if errors.Is(err, unix.ESRCH) {
		return nil, failf(wire.Conflict, "the process of session %s has ended", s.id)
	}
	return nil, err
}

// resize changes the size of a session's terminal.
func (a *Agent) resize(r wire.ResizeArgs) (any, error) {
	s, err := a.sessions.get(r.Session)
	if err != nil {
		return nil, err
	}
	if s.in == nil || !s.in.tty {
		return nil, failf(wire.Invalid, "session %s has no terminal", s.id)
	}
	rc, err := s.in.f.SyscallConn()
	if err == nil {
		if cerr := rc.Control(func(fd uintptr) { err = resizePTY(int(fd), r.Size) }); cerr != nil {
			return nil, failf(wire.Conflict, "session %s has ended", s.id)
		}
	}
	return nil, err
}

// sendRows streams values as lines of JSON, for results that may be larger
// than a packet.
func sendRows(c *call, rows func(yield func(any) error) error) error {
	if err := c.accept(struct{}{}); err != nil {
		return err
	}
	w := bufio.NewWriterSize(&download{c: c}, wire.MaxChunk)
	enc := json.NewEncoder(w)
	if err := rows(enc.Encode); err != nil {
		return err
	}
	return w.Flush()
}
